"""Threads that share work on a CPU."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch


class _Workers:
    """Threads that each run single-threaded PyTorch: tiles are the parallelism, operators inside must not add more.

    Plain threads instead of numba's: those of numba may not be used by two threads at once (its default), or not after
    a fork (OpenMP). Here a forked process, such as a data loader's worker, makes its own threads at first use.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        """Forget the threads without stopping them: they do not exist in a forked child."""
        self._lock = threading.Lock()
        self._pools = {}

    def _pool(self, count):
        with self._lock:
            if count not in self._pools:
                caller_threads = torch.get_num_threads()
                started = threading.Barrier(count)

                def begin():
                    torch.set_num_threads(1)
                    started.wait()

                pool = ThreadPoolExecutor(count, thread_name_prefix="fapn_zoo", initializer=begin)
                for future in [pool.submit(int) for _ in range(count)]:
                    future.result()
                # The number of threads belongs to each thread, but PyTorch also keeps a default for new ones.
                torch.set_num_threads(caller_threads)
                self._pools[count] = pool
            return self._pools[count]

    def run(self, function, count):
        """Call `function(worker)` for worker = 0 to count - 1 at once, and wait; the first error is raised.

        Neither gradients nor autocast are active inside; inference mode is as the caller has it.
        """
        inference = torch.is_inference_mode_enabled()

        def call(worker):
            with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
                function(worker)

        if count == 1:
            call(0)
            return
        pool = self._pool(count)
        futures = [pool.submit(call, worker) for worker in range(count)]
        errors = [future.exception() for future in futures]
        for error in filter(None, errors):
            raise error


WORKERS = _Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKERS.reset)
