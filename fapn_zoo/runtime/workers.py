"""Threads that share work on a CPU.

They are PyTorch's own where these can be had. After each of its operators OpenMP's threads spin for some milliseconds
while they wait for the next one, and threads of ours would have to share the cores with them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()  # that imported this: a forked one has another


@functools.cache
def _find_openmp() -> Any:
    """GNU's function that has PyTorch's OpenMP threads call another, or None; other OpenMPs offer it too."""
    if sys.platform != "linux" or not torch.backends.openmp.is_available():
        return None
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes, parallel.restype = [_CALLBACK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel


def run_workers(function: Callable[[int], object], count: int) -> None:
    """Calls `function(worker)` for worker = 0 to count - 1 at once, and waits; the first error is raised.

    PyTorch is single-threaded inside: operators must not add threads to ours. Neither gradients nor autocast are
    active; inference mode is as the caller has it.

    Without OpenMP, plain threads instead of numba's: those of numba may not be used by two threads at once (its
    default). A forked process, such as a data loader's worker, has plain threads too: OpenMP's do not survive a fork.
    """
    inference = torch.is_inference_mode_enabled()
    workers, begun, errors = iter(range(count)), [], []

    def work(_: object) -> None:
        try:
            begun.append(threading.get_ident())
            # OpenMP may come with fewer threads than asked for.
            for worker in workers:
                with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
                    function(worker)
        except BaseException as error:
            errors.append(error)

    parallel = _find_openmp() if os.getpid() == _PROCESS else None
    if count == 1:
        work(None)
    elif parallel:
        # Operators that are called in a parallel region do not begin another.
        parallel(_CALLBACK(work), None, count, 0)
        if threading.get_ident() not in begun:
            raise KeyboardInterrupt  # It came when this thread was about to begin, where ctypes drops it.
    else:
        threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(count, "fapn_zoo", torch.set_num_threads, (1,)) as pool:
                list(pool.map(work, range(count)))
        finally:  # the number belongs to each thread, but PyTorch also keeps a default for new ones
            torch.set_num_threads(threads)
    if errors:
        raise errors[0]
