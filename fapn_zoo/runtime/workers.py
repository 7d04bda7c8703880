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


class _Workers:
    """Threads that each run single-threaded PyTorch: tiles are the parallelism, operators inside must not add more.

    Without OpenMP, plain threads instead of numba's: those of numba may not be used by two threads at once (its
    default). A forked process, such as a data loader's worker, has plain threads too: OpenMP's do not survive a fork.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, forked: bool = False) -> None:
        """Forget the threads without stopping them: they do not exist in a forked child."""
        self.forked, self._lock, self._pools = forked, threading.Lock(), {}

    def _pool(self, count: int) -> ThreadPoolExecutor:
        with self._lock:
            if count not in self._pools:
                caller_threads = torch.get_num_threads()
                started = threading.Barrier(count)

                def begin() -> None:
                    torch.set_num_threads(1)
                    started.wait()

                pool = ThreadPoolExecutor(count, thread_name_prefix="fapn_zoo", initializer=begin)
                try:
                    for future in [pool.submit(int) for _ in range(count)]:
                        future.result()
                except BaseException:
                    started.abort()  # Else those that did start would wait forever, and the process for them.
                    raise
                # The number of threads belongs to each thread, but PyTorch also keeps a default for new ones.
                torch.set_num_threads(caller_threads)
                self._pools[count] = pool
            return self._pools[count]

    def run(self, function: Callable[[int], object], count: int) -> None:
        """Call `function(worker)` for worker = 0 to count - 1 at once, and wait; the first error is raised.

        Neither gradients nor autocast are active inside; inference mode is as the caller has it.
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

        parallel = None if self.forked else _find_openmp()
        if count == 1:
            work(None)
        elif parallel:
            # Operators that are called in a parallel region do not begin another.
            parallel(_CALLBACK(work), None, count, 0)
            if threading.get_ident() not in begun:
                raise KeyboardInterrupt  # It came when this thread was about to begin, where ctypes drops it.
        else:
            pool = self._pool(count)
            for future in [pool.submit(work, None) for _ in range(count)]:
                future.result()
        if errors:
            raise errors[0]


WORKERS = _Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: WORKERS.reset(forked=True))
