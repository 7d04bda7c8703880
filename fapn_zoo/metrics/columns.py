"""The images of average precision as columns of numbers, and back: the form in which they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

_DTYPES = {"classes": np.int64, "areas": np.float64, "crowd": np.int64, "scores": np.float64, "boxes": np.float64}
_OWN = {"truth": "crowd", "found": "scores"}  # what only one side has


def to_columns(images: Mapping[int | str, Mapping[str, Any]], kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """What `AveragePrecision.arrays` returns."""
    ids = [str(image).encode("utf-8", "surrogatepass") for image in images]
    arrays = {
        "ids": _bytes(ids),
        "id_ends": _ends(ids),
        "named": np.array([isinstance(image, str) for image in images], bool),
        "sizes": np.array([entry["size"] for entry in images.values()], np.int64).reshape(-1, 2),
    }
    for side, own in _OWN.items():
        rows = [entry[side] for entry in images.values()]
        arrays[f"{side}_ends"] = _ends([row["classes"] for row in rows])
        for name in ("classes", "areas", own, *kinds):
            values = [value for row in rows for value in row[name]]
            if name == "masks":
                values = [counts.encode("ascii") for counts in values]
                arrays |= {f"{side}_masks": _bytes(values), f"{side}_mask_ends": _ends(values)}
            else:
                arrays[f"{side}_{name}"] = np.array(values, _DTYPES[name]).reshape((-1, 4) if name == "boxes" else -1)
    return arrays


def from_columns(arrays: Mapping[str, np.ndarray], kinds: Sequence[str]) -> dict[int | str, dict[str, Any]]:
    """The images that `to_columns` was given.

    Raises:
        ValueError: the lengths of columns do not fit together, or an id is there twice.
    """
    named, sizes = arrays["named"].tolist(), arrays["sizes"].tolist()
    if len(sizes) != len(named):
        raise ValueError(f"cannot load the sizes of {len(sizes)} images beside the ids of {len(named)}")
    texts = [text.decode("utf-8", "surrogatepass") for text in _texts(arrays, "ids", "id_ends")]
    sides = [_side(arrays, side, ("classes", "areas", own, *kinds)) for side, own in _OWN.items()]
    images = {}
    for text, name, size, truth, found in zip(texts, named, sizes, *sides, strict=True):
        images[text if name else int(text)] = {"size": size, "truth": truth, "found": found}
    if len(images) < len(named):
        raise ValueError(f"cannot load {len(named)} images of {len(images)} different ids")
    return images


def _side(arrays: Mapping[str, np.ndarray], side: str, names: Sequence[str]) -> list[dict[str, list]]:
    """The truth or what was found in every image."""
    ends, columns = arrays[f"{side}_ends"], {}
    for name in names:
        if name == "masks":
            texts = _texts(arrays, f"{side}_masks", f"{side}_mask_ends")
            columns[name] = _cut([counts.decode("ascii") for counts in texts], ends, f"{side}_{name}")
        else:
            columns[name] = _cut(arrays[f"{side}_{name}"].tolist(), ends, f"{side}_{name}")
    return [dict(zip(names, parts, strict=True)) for parts in zip(*columns.values(), strict=True)]


def _texts(arrays: Mapping[str, np.ndarray], name: str, ends: str) -> list[bytes]:
    return _cut(arrays[name].tobytes(), arrays[ends], name)


def _cut(values: Any, ends: np.ndarray, what: str) -> list[Any]:
    """The parts of a sequence that end at `ends`."""
    borders = [0, *ends.tolist()]
    if borders != sorted(borders) or borders[-1] != len(values):
        raise ValueError(f"cannot load {what}: its ends do not part {len(values)} rows")
    return [values[start:end] for start, end in pairwise(borders)]


def _ends(parts: Sequence[Sequence[Any]]) -> np.ndarray:
    return np.cumsum([len(part) for part in parts], dtype=np.int64)


def _bytes(texts: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(bytearray(b"".join(texts)), np.uint8)
