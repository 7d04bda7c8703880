"""How fast models are, side by side: latency and its parts, memory, size and work, in one interleaved run.

Weights are random unless a weights folder is named: they change no time, but for the offsets of deformable
convolution, which are drawn as wide as trained ones so that samples are taken where a trained model takes them.

Work is counted on shapes, without any data. PyTorch's counter has the formulas of convolutions, matrix products and
attention; norms, activations and resizing are not counted, as in the tables of papers. Deformable convolution is added
here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from fapn_zoo.benchmark.inference import DTYPES, PARTS, Run, create_with_offsets, peak_memory, peak_memory_on_gpu
from fapn_zoo.predict.inputs import padded_size
from fapn_zoo.runtime.device import device_name, find_device
from fapn_zoo.runtime.progress import bar
from fapn_zoo.runtime.provenance import circumstances
from fapn_zoo.zoo.spec import ModelSpec

Shape = tuple[int, ...]
Jobs = Sequence[tuple[str, tuple[int, int]]]
STAGES = (*PARTS, "postprocess")

# The models and input sizes (H, W) whose speed the FaPN talk reports.
REALTIME = (
    ("perpixel_fapn_resnet18_cityscapes", (512, 1024)),
    ("perpixel_fapn_resnet18_cityscapes", (768, 1536)),
    ("perpixel_fapn_resnet34_cityscapes", (1024, 2048)),
    ("perpixel_fapn_resnet18_cocostuff10k", (640, 640)),
    ("perpixel_fapn_resnet34_cocostuff10k", (640, 640)),
)


def benchmark(
    jobs: Jobs,
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
    """Times one inference of each model in turn, so that whatever else the machine does meets all of them alike.

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
        memory: also measure peak memory; on a CPU in a process of its own per job, not compiled.
        progress: a bar on stderr.

    Returns:
        "settings", "device", "versions", "commit", "command", "date", and "rows", one per job: "model", "size" [H, W],
        "params", "macs" and per part "macs_backbone", ... (multiply-adds per image), "latency_ms" {"median", "p10",
        "p90"}, "stages_ms" (median of each part), "fps" and "fps_forward" (images per second with and without
        post-processing), "peak_bytes" (weights and what one inference needs beside them; None where unknown) and
        "ratio" (median latency against that of the first job of this size).

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
            for number, run in itertools.product(range(warmup + rounds), runs):
                run.once(keep=number >= warmup)
                shown.update()
        peaks = [_peak(run) if memory else None for run in runs]
    firsts: dict[tuple[int, int], float] = {}
    report["rows"] = [_row(run, peak, firsts) for run, peak in zip(runs, peaks, strict=True)]
    return report | circumstances()


def _check(jobs: Jobs, *, dtype: str, warmup: int, **least_one: int | None) -> None:
    wrong = [] if jobs else ["no model to benchmark"]
    for name, size in jobs:
        if len(size) != 2 or min(size) < 1:
            wrong.append(f"size {size!r} of {name}; expected (height, width) in pixels")
    if dtype not in DTYPES:
        wrong.append(f"dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    least = {"warmup": (warmup, 0)} | {name: (value, 1) for name, value in least_one.items()}
    wrong += [f"{name}={v}; expected {low} or more" for name, (v, low) in least.items() if v is not None and v < low]
    if wrong:
        raise ValueError(wrong[0])


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


def _build(jobs: Jobs, device: torch.device, settings: dict[str, Any], num_classes: int | None) -> list[Run]:
    """Jobs of one name share a model."""
    models = {name: create_with_offsets(name, num_classes).to(device) for name in dict.fromkeys(n for n, _ in jobs)}
    if settings["compile"]:
        for model in models.values():
            for part in PARTS:  # a size that varies would be compiled into one slower program for all sizes
                setattr(model, part, torch.compile(getattr(model, part), dynamic=False))
    manner = {key: settings[key] for key in ("batch", "dtype", "channels_last")}
    return [Run(name, size, models[name], device, manner) for name, size in jobs]


def _peak(run: Run) -> int | None:
    if run.device.type == "cuda":
        return peak_memory_on_gpu(run.model, run.device, lambda: run.once(keep=False))
    if run.device.type != "cpu":
        return None
    job = {"model": run.model.spec.to_config(), "size": run.size, "threads": torch.get_num_threads()}
    return peak_memory(run.manner | job)


def _row(run: Run, peak: int | None, firsts: dict[tuple[int, int], float]) -> dict[str, Any]:
    """The numbers of one job. `firsts` keeps the median latency of the first job of every size."""
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
        "fps": 1e3 * run.manner["batch"] / median,
        "fps_forward": 1e3 * run.manner["batch"] / float(np.median(forwards)),
        "peak_bytes": peak,
        "ratio": median / firsts.setdefault(run.size, median),
    }


def deform_conv_flops(input_shape: Shape, weight_shape: Shape, out_shape: Shape, modulated: bool) -> int:
    """Operations of a deformable convolution, two per multiply-add.

    The matrix product of a convolution of the same shape, and before it one bilinear sample (four multiply-adds) for
    every input channel, tap and output pixel, which a mask multiplies once more (counted as a fifth).
    """
    batch, out_channels, height, width = out_shape
    _, group_channels, *kernel = weight_shape
    pixels = batch * height * width
    product = pixels * out_channels * group_channels * prod(kernel)
    samples = pixels * input_shape[1] * prod(kernel) * (5 if modulated else 4)
    return 2 * (product + samples)


# Formulas get the shapes of an operator's arguments, in its order, and the arguments that are no tensors as they are.


def _torchvision_formula(x: Shape, weight: Shape, *rest: Any, out_shape: Shape, **_: Any) -> int:
    return deform_conv_flops(x, weight, out_shape, modulated=bool(rest[-1]))  # the last one is use_mask


def _own_formula(x: Shape, offset: Shape, w: Shape, bias: Any, mask: Any, *_: Any, out_shape: Shape, **__: Any) -> int:
    return deform_conv_flops(x, w, out_shape, modulated=mask is not None)


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter, which prints nothing and knows both operators of deformable convolution."""
    import torchvision  # noqa: F401  (registers its operator)

    from fapn_zoo.modules.deform_conv import ops  # noqa: F401  (registers ours)

    own, theirs = torch.ops.fapn_zoo.deform_conv2d, torch.ops.torchvision.deform_conv2d
    return FlopCounterMode(display=False, custom_mapping={own: _own_formula, theirs: _torchvision_formula})


def count(spec: ModelSpec, size: tuple[int, int], batch: int = 1) -> dict[str, int]:
    """Counts the model of a complete description, built on the meta device, where nothing is computed.

    Args:
        size: (H, W) of the normalised, padded input in pixels.
        batch: N.

    Returns:
        `params`; `macs`, the multiply-adds of a forward pass; and `macs_backbone`, `macs_neck` (with the encoder, if
        there is one), `macs_head`.
    """
    from fapn_zoo.model import build  # not above: timm takes seconds

    with torch.device("meta"):
        model = build(spec).eval().requires_grad_(False)  # the counter trips over gradients of views
        x = torch.empty(batch, spec.in_chans, *size)
    with torch.no_grad(), flop_counter() as counter:
        model(x)
    table = counter.get_flop_counts()
    name = type(model).__name__
    found = {f"macs_{part}": sum(table.get(f"{name}.{part}", {}).values()) // 2 for part in PARTS}
    found["macs_neck"] += sum(table.get(f"{name}.encoder", {}).values()) // 2
    params = sum(p.numel() for p in model.parameters())
    return {"params": params, "macs": counter.get_total_flops() // 2, **found}
