"""What is measured, and how: a model whose offsets are as wide as trained ones, one inference in its parts, its memory.

Peak memory on a CPU is that of a process of its own, where nothing else used memory:

    python -m fapn_zoo.benchmark.inference < JOB.json

reads {"model": the description, "size", "batch", "dtype", "channels_last", "threads"} and prints the bytes as JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fapn_zoo.modules.deform_conv.conv import ModulatedDeformConv
from fapn_zoo.postprocess import Frame, decode
from fapn_zoo.predict.inputs import padded_size
from fapn_zoo.runtime.device import autocast, resolve_amp
from fapn_zoo.tasks import task_for
from fapn_zoo.weights.finite import check_finite
from fapn_zoo.zoo.registry import get_spec
from fapn_zoo.zoo.spec import ModelSpec

# Of weights and input; "auto" is as in `predict`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": torch.float32}
PARTS = ("backbone", "neck", "head")
SMALL = (64, 64)  # of a first run, in which libraries are loaded and kernels compiled
OFFSET_SPREAD = 2.0  # pixels; standard deviation of the drawn offsets


def create_with_offsets(name: str, num_classes: int | None = None) -> nn.Module:
    """A model to time: random weights with drawn offsets, or a weights folder as it is.

    Raises ValueError for an architecture without a label set where `num_classes` is None, and for a folder whose
    weights are not finite.
    """
    from fapn_zoo.create import create_model  # not above: timm takes seconds

    if Path(name).is_dir():
        name = f"local-dir:{name}"
    if name.startswith("local-dir:"):
        model = create_model(name, pretrained=True)
        check_finite(model.state_dict().items(), f"{name}: nothing is measured, since its weights")
        return model
    free = ":" not in name and get_spec(name)[0].num_classes is None
    if free and num_classes is None:
        raise ValueError(f"{name!r} has no label set: say how many classes, num_classes= or --num-classes")
    model = create_model(name, num_classes=num_classes if free else None)
    draw_offsets(model)
    return model


def draw_offsets(model: nn.Module) -> None:
    """Fresh deformable convolutions sample the grid points themselves, which is faster than what trained ones do."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, ModulatedDeformConv) and not module.offset_mask.weight.any():
            with torch.no_grad():
                offsets = module.offset_mask.bias[: 18 * module.groups]
                offsets.copy_(OFFSET_SPREAD * torch.randn(len(offsets), generator=generator))


def prepare(
    model: nn.Module,
    size: tuple[int, int],
    *,
    batch: int = 1,
    dtype: str = "fp32",
    channels_last: bool = False,
    mark: Callable[[str], Any] = lambda name: None,
) -> Callable[[], list[Any]]:
    """Brings a model into dtype and memory format; returns a function that does one inference.

    That is the forward pass on a batch that is on the device already, padded as `predict` pads it, and the answer of
    the model's task for every image at its size (H, W), as it is scored. Between the two, `mark("postprocess")` is
    called. The function returns the answers. The other arguments are those of `benchmark`.
    """
    form = torch.channels_last if channels_last else torch.contiguous_format
    model.eval().to(dtype=DTYPES[dtype], memory_format=form)
    device, amp = next(model.parameters()).device, "no"
    if dtype == "auto":
        amp = resolve_amp("auto", device)
        form = torch.channels_last if device.type == "cpu" else form
    shape = batch, model.spec.in_chans, *padded_size(model.data, size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.to(device, DTYPES[dtype]).contiguous(memory_format=form)

    task, frame = task_for(model.spec), Frame(size, size)

    def run() -> list[Any]:
        with autocast(device, amp):
            output = model(x)
        mark("postprocess")
        return [decode(output.image(n), task.name, frame, model.data, **task.scored) for n in range(batch)]

    return run


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
        self.marks: list[tuple[str, Any]] = []
        with self._explained():
            self.inference = prepare(self.model, self.size, **self.manner, mark=self._mark)

    def once(self, keep: bool) -> None:
        """One inference, with time stamps where the model enters and leaves its parts."""
        self.marks.clear()
        with ExitStack() as hooks, self._explained(), torch.no_grad():
            for part in PARTS:
                module = getattr(self.model, part)
                hooks.callback(module.register_forward_pre_hook(lambda *_, part=part: self._mark(part)).remove)
                hooks.callback(module.register_forward_hook(lambda *_: self._mark("between")).remove)
            self._mark("between")
            self.inference()
            self._mark("end")
            self._synchronize()
            if keep:
                self.times.append(self._intervals())

    def _mark(self, name: str) -> None:
        """Ends the interval before and begins one of this name: an event on a CUDA stream, or the time."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append((name, event))
        else:
            self._synchronize()
            self.marks.append((name, time.perf_counter()))

    def _intervals(self) -> dict[str, float]:
        """Milliseconds by name; intervals of one name are added."""
        found: dict[str, float] = {}
        for (name, start), (_, end) in itertools.pairwise(self.marks):
            ms = start.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - start)
            found[name] = found.get(name, 0.0) + ms
        return found

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns PyTorch's error (no memory, or no kernel for this dtype or device) into a line that names the job."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            size, manner = "x".join(map(str, self.size)), f"batch {self.manner['batch']}, {self.manner['dtype']}"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self.name} cannot run at {size}, {manner}: {reason}") from error


def peak_memory(job: Mapping[str, Any]) -> int | None:
    """Bytes that a forward pass and its post-processing need at most: the weights, and what is in use beside them.

    None where the system does not tell (Windows) or the other process fails, which it says on stderr.
    """
    try:
        import resource  # noqa: F401
    except ImportError:
        return None
    command = [sys.executable, "-m", "fapn_zoo.benchmark.inference"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        print(f"peak memory could not be measured: {last}", file=sys.stderr)
        return None


def peak_memory_on_gpu(model: nn.Module, device: torch.device, once: Callable[[], Any]) -> int:
    """`peak_memory` of `once`, which runs a model that is on a CUDA device, in this process."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    once()
    return torch.cuda.max_memory_allocated(device) - before + weight_bytes(model)


def resident_peak() -> int:
    """Bytes of this process that have been in memory at once, since `forget_peak` where the system allows that."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Linux: lets the peak begin at what is in memory now. Elsewhere the small first run hardly raises it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _measure(job: Mapping[str, Any]) -> int:
    from fapn_zoo.model import build  # not above: timm takes seconds

    torch.set_num_threads(job["threads"])
    with torch.no_grad():
        model = build(ModelSpec.from_config(job["model"]))
        options = {"batch": job["batch"], "dtype": job["dtype"], "channels_last": job["channels_last"]}
        prepare(model, SMALL, **options)()
        run = prepare(model, tuple(job["size"]), **options)
        forget_peak()
        before = resident_peak()
        run()
        return resident_peak() - before + weight_bytes(model)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


if __name__ == "__main__":
    print(_measure(json.load(sys.stdin)))
