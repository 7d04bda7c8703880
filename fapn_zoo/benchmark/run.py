"""How fast models are, side by side: latency and its parts, memory, size and work, in one interleaved run.

Weights are random unless a weights folder is named: they change no time, but for the offsets of deformable
convolution, which are drawn as wide as trained ones so that samples are taken where a trained model takes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fapn_zoo import postprocess
from fapn_zoo.benchmark.flops import PARTS, count
from fapn_zoo.benchmark.memory import peak_memory, weight_bytes
from fapn_zoo.modules.necks.fapn import ModulatedDeformConv
from fapn_zoo.predict.inputs import padded_size
from fapn_zoo.runtime.device import device_name, find_device
from fapn_zoo.runtime.precision import autocast, resolve_amp
from fapn_zoo.runtime.progress import bar
from fapn_zoo.runtime.provenance import circumstances

# Of weights and input; "auto" is as in `predict`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "auto": torch.float32}
STAGES = (*PARTS, "postprocess")
OFFSET_SPREAD = 2.0  # pixels; standard deviation of the random offsets

# The models and input sizes (H, W) whose speed the FaPN talk reports.
REALTIME = (
    ("perpixel_fapn_resnet18_cityscapes", (512, 1024)),
    ("perpixel_fapn_resnet18_cityscapes", (768, 1536)),
    ("perpixel_fapn_resnet34_cityscapes", (1024, 2048)),
    ("perpixel_fapn_resnet18_cocostuff10k", (640, 640)),
    ("perpixel_fapn_resnet34_cocostuff10k", (640, 640)),
)


def benchmark(
    jobs: Sequence[tuple[str, tuple[int, int]]],
    *,
    batch: int = 1,
    device: str | torch.device | None = None,
    dtype: str = "fp32",
    compile: bool = False,
    channels_last: bool = False,
    threads: int | None = None,
    rounds: int = 20,
    warmup: int = 2,
    num_classes: int | None = None,
    memory: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Times models in turn, so that whatever else the machine does meets all of them alike.

    One inference is the forward pass on a batch that is on the device already, padded as `predict` pads it, and
    `postprocess.semantic` at the size of the image.

    Args:
        jobs: (model, (H, W)) pairs. A model is a name with a backbone, "local-dir:PATH", a weights folder, or
            "hf-hub:owner/name"; only folders bring their weights.
        batch: images per inference.
        device: None is a GPU where there is one.
        dtype: "fp32", "bf16" or "fp16": of weights and input. "auto" is what `predict` does: fp32 weights, autocast to
            bf16 where the processor is fast in it, and on a CPU channels-last input.
        compile: backbone, neck and head by torch.compile, each of its own so that the parts can still be told apart.
        channels_last: memory format of weights and input.
        threads: of the CPU; None leaves them as they are.
        rounds, warmup: timed inferences of every job, and untimed ones before them.
        num_classes: for architectures without a label set.
        memory: also measure peak memory; on a CPU in a process of its own per job, without ``compile``.
        progress: a bar on stderr.

    Returns:
        Plain data: "settings", "device", "versions", "commit", "command", "date", and "rows", one per job: "model",
        "size" [H, W], "params", "macs" and per part "macs_backbone", ... (multiply-adds per image), "latency_ms"
        {"median", "p10", "p90"}, "stages_ms" (median of each part), "fps" and "fps_forward" (images per second with
        and without post-processing), "peak_bytes" (weights and what one inference needs beside them; None where
        unknown) and "ratio" (median latency against that of the first job of this size).

    Raises:
        ValueError: unknown names, a value out of range, or a model that cannot run in this way.
    """
    _check(jobs, batch=batch, rounds=rounds, warmup=warmup, threads=threads, dtype=dtype)
    device = find_device(device)
    settings = {"batch": batch, "dtype": dtype, "compile": compile, "channels_last": channels_last, "rounds": rounds}
    with _environment(threads):
        runs = _build(jobs, device, settings, num_classes)
        report = {"settings": settings | {"threads": torch.get_num_threads()}, "device": device_name(device)}
        with bar(progress, total=len(runs) * (warmup + rounds), unit="inference") as shown:
            for number in range(warmup + rounds):
                for run in runs:
                    run.once(keep=number >= warmup)
                    shown.update()
        peaks = [_peak(run, settings) if memory else None for run in runs]
    firsts: dict[tuple[int, int], float] = {}
    report["rows"] = [_row(run, peak, batch, firsts) for run, peak in zip(runs, peaks, strict=True)]
    return report | circumstances()


def prepare(
    model: nn.Module,
    size: tuple[int, int],
    *,
    batch: int = 1,
    dtype: str = "fp32",
    channels_last: bool = False,
    mark: Callable[[str], Any] = lambda name: None,
) -> Callable[[], Tensor]:
    """Brings a model into dtype and memory format; returns a function that does one inference (see `benchmark`).

    ``mark("postprocess")`` is called between the forward pass and the post-processing.
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

    def run() -> Tensor:
        with autocast(device, amp):
            output = model(x)
        mark("postprocess")
        return postprocess.semantic(output, size, size, stride=model.head.stride)

    return run


# Timing -------------------------------------------------------------------------------------------------------------


class _Clock:
    """Cuts the time of one inference into named intervals: events on a CUDA stream, else the processor's clock."""

    def __init__(self, device: torch.device):
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
            found[name] = found.get(name, 0.0) + (
                start.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - start)
            )
        return found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()


@dataclass
class _Run:
    """One job: its model on the device, and the intervals of every timed inference."""

    name: str
    size: tuple[int, int]
    model: nn.Module
    clock: _Clock
    settings: dict[str, Any]
    times: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = {key: self.settings[key] for key in ("batch", "dtype", "channels_last")}
        with self._explained():
            self.inference = prepare(self.model, self.size, **options, mark=self.clock.mark)

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
            size, manner = "x".join(map(str, self.size)), f"batch {self.settings['batch']}, {self.settings['dtype']}"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self.name} cannot run at {size}, {manner}: {reason}") from error


@contextmanager
def _environment(threads: int | None) -> Iterator[None]:
    """The number of threads, and cuDNN's search for the fastest kernels, both put back afterwards."""
    before, search = torch.get_num_threads(), torch.backends.cudnn.benchmark
    try:
        torch.set_num_threads(threads or before)
        torch.backends.cudnn.benchmark = True
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.benchmark = search


# Models -------------------------------------------------------------------------------------------------------------


def _build(
    jobs: Sequence[tuple[str, tuple[int, int]]], device: torch.device, settings: dict[str, Any], num_classes: int | None
) -> list[_Run]:
    """Jobs of one name share a model."""
    models = {name: create(name, num_classes).to(device) for name in dict.fromkeys(name for name, _ in jobs)}
    if settings["compile"]:
        for model in models.values():
            for part in PARTS:  # a size that varies would be compiled into one slower program for all sizes
                setattr(model, part, torch.compile(getattr(model, part), dynamic=False))
    return [_Run(name, size, models[name], _Clock(device), settings) for name, size in jobs]


def create(name: str, num_classes: int | None = None) -> nn.Module:
    """A model to time: random weights but for folders, and offsets of the size that training gives."""
    from fapn_zoo import create_model
    from fapn_zoo.zoo.registry import get_spec

    if Path(name).is_dir():
        name = f"local-dir:{name}"
    if name.startswith("local-dir:"):
        return create_model(name, pretrained=True)
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


def _peak(run: _Run, settings: dict[str, Any]) -> int | None:
    device = run.clock.device
    if device.type == "cpu":
        job = {key: settings[key] for key in ("batch", "dtype", "channels_last")}
        job |= {"model": run.model.spec.to_config(), "size": run.size, "threads": torch.get_num_threads()}
        return peak_memory(job)
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run.once(keep=False)
    return torch.cuda.max_memory_allocated(device) - before + weight_bytes(run.model)


def _check(jobs: Sequence[tuple[str, tuple[int, int]]], *, dtype: str, warmup: int, **least_one: int | None) -> None:
    if not jobs:
        raise ValueError("no model to benchmark")
    for name, size in jobs:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size {size!r} of {name}; expected (height, width) in pixels")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    for name, value in least_one.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}; expected 1 or more")
    if warmup < 0:
        raise ValueError(f"warmup={warmup}; expected 0 or more")


def _row(run: _Run, peak: int | None, batch: int, firsts: dict[tuple[int, int], float]) -> dict[str, Any]:
    stages = {stage: [found[stage] for found in run.times] for stage in STAGES}
    totals = [sum(found.values()) for found in run.times]
    forwards = [total - after for total, after in zip(totals, stages["postprocess"], strict=True)]
    p10, median, p90 = (float(value) for value in np.percentile(totals, (10, 50, 90)))
    return {
        "model": run.name,
        "size": list(run.size),
        **count(run.model.spec, padded_size(run.model.data, run.size)),
        "latency_ms": {"median": median, "p10": p10, "p90": p90},
        "stages_ms": {stage: float(np.median(times)) for stage, times in stages.items()},
        "fps": 1e3 * batch / median,
        "fps_forward": 1e3 * batch / float(np.median(forwards)),
        "peak_bytes": peak,
        "ratio": median / firsts.setdefault(run.size, median),
    }
