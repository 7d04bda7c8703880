"""Which compilers work on this machine: numba, and Triton's start of kernels on a GPU.

Each is tried when first asked for, and once in a process; nothing is imported before.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable


def usable(package: str, load: Callable[[], bool]) -> bool:
    """What `load` says; False where it cannot import the package, and with a warning where that is broken."""
    try:
        return load()
    except ModuleNotFoundError:
        return False
    except Exception as error:
        text = f"{package} cannot be used, so deformable convolution will be slow: {error}"
        warnings.warn(text, stacklevel=3)
        return False


def _load_numba() -> bool:
    import numba

    # Switched off (NUMBA_DISABLE_JIT), it would interpret the kernels.
    return not numba.config.DISABLE_JIT


def _start_triton() -> bool:
    from triton.runtime import driver

    # A C compiler builds this, with Python's headers: systems that only run things may lack either.
    return driver.active.utils is not None


@functools.cache
def numba_works() -> bool:
    """Whether numba can be used; tried once."""
    return usable("numba", _load_numba)


@functools.cache
def triton_starts() -> bool:
    """Whether Triton can start kernels on a GPU; tried once."""
    return usable("triton", _start_triton)
