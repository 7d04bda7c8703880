"""Label maps in MATLAB's files, as COCO-Stuff-10K has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FIELD = "S"


def read_mat(path: Path) -> np.ndarray:
    """The matrix `S` of a file, int32 (H, W). ValueError where there is none, or a package is missing."""
    from scipy.io import loadmat

    try:
        table = loadmat(path, variable_names=[FIELD])
        found = table.get(FIELD)
    except NotImplementedError:  # version 7.3 is HDF5, which stores the columns first
        try:
            import h5py
        except ImportError:
            raise ValueError("it is a MATLAB file of version 7.3; `pip install h5py` to read it") from None
        with h5py.File(path) as file:
            found = np.array(file[FIELD]).T if FIELD in file else None
    if found is None or found.ndim != 2 or not np.array_equal(found, found.astype(np.int32)):
        raise ValueError(f"it has no matrix {FIELD} of whole numbers")
    return found.astype(np.int32)
