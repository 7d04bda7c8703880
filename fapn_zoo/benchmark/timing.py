"""How long one inference and its parts take: a clock for the processor and for CUDA, and a job that is timed by it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fapn_zoo.benchmark.flops import PARTS
from fapn_zoo.benchmark.inference import prepare


class Clock:
    """Cuts the time of one inference into named intervals: events on a CUDA stream, else the processor's clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[tuple[str, Any]] = []

    def mark(self, name: str) -> None:
        """Ends the interval before and begins one of this name."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append((name, event))
            return
        _synchronize(self.device)
        self.marks.append((name, time.perf_counter()))

    def intervals(self) -> dict[str, float]:
        """Milliseconds by name; intervals of one name are added. Forgets the marks."""
        _synchronize(self.device)
        marks, self.marks = self.marks, []
        found: dict[str, float] = {}
        for (name, start), (_, end) in zip(marks, marks[1:], strict=False):
            ms = start.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - start)
            found[name] = found.get(name, 0.0) + ms
        return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()


@dataclass
class Run:
    """One job: its model on the device, and the intervals of every timed inference.

    Attributes:
        size: (H, W) of the image.
        manner: batch, dtype and channels_last, as `prepare` takes them.
        times: milliseconds by part of each inference that was kept.
    """

    name: str
    size: tuple[int, int]
    model: nn.Module
    device: torch.device
    manner: dict[str, Any]
    times: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)
        with self._explained():
            self.inference = prepare(self.model, self.size, **self.manner, mark=self.clock.mark)

    def once(self, keep: bool) -> None:
        """One inference, with time stamps where the model enters and leaves its parts."""
        hooks = []
        for part in PARTS:
            module = getattr(self.model, part)
            hooks.append(module.register_forward_pre_hook(lambda *_, part=part: self.clock.mark(part)))
            hooks.append(module.register_forward_hook(lambda *_: self.clock.mark("between")))
        try:
            with self._explained(), torch.no_grad():
                self.clock.mark("between")
                self.inference()
                self.clock.mark("end")
                found = self.clock.intervals()
        finally:
            for hook in hooks:
                hook.remove()
        if keep:
            self.times.append(found)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns PyTorch's error (no memory, or no kernel for this dtype or device) into a line that names the job."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            size, manner = "x".join(map(str, self.size)), f"batch {self.manner['batch']}, {self.manner['dtype']}"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self.name} cannot run at {size}, {manner}: {reason}") from error
