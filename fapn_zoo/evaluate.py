"""Scores of a model on a data set: the way of `predict` over every image, exact counts, one report."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fapn_zoo import postprocess
from fapn_zoo._files import write_text
from fapn_zoo._inputs import network_input, resize_for
from fapn_zoo.images import load_image
from fapn_zoo.metrics.semantic import ConfusionMatrix
from fapn_zoo.predict import inference

CSV_COLUMNS = (
    "model weights data split task images miou pixel_acc mean_acc fwiou params amp device seconds "
    "torch fapn_zoo commit seed date command"
).split()


def evaluate(
    model: nn.Module,
    data: Any,
    split: str = "test",
    task: str = "semantic",
    batch_size: int = 1,
    device: str | torch.device | None = None,
    amp: str | None = None,
    limit: int | None = None,
    progress: bool = True,
    seed: int | None = None,
    weights: str = "",
) -> dict[str, Any]:
    """Scores a model at the original size of every image.

    Under `accelerate launch` or torchrun every process takes every n-th image and all get the same report, equal to
    that of one process to the last digit.

    Args:
        model: a SegmentationModel.
        data: a source for `open_dataset` (folder, scenes:N) or an opened data set.
        split: which part of a source to open; only noted for an opened one.
        task: "semantic".
        batch_size: images of equal size that are run together; smaller groups where sizes change.
        device: where to run; None = where the model is.
        amp: "bf16" or "fp16" autocast; None or "no" = full precision.
        limit: the first so many images only.
        progress: show a progress bar (main process only).
        seed, weights: of the training run and where the weights came from; only noted in the report.

    Returns:
        The report: plain JSON types; scores are fractions 0..1, undefined ones None. "data" is the data set's name,
        "source" what was opened.

    Raises:
        ValueError: an unknown task, an empty data set, class tables that differ between model and data (the
            differences are named), or a label out of range (the file is named).
    """
    from fapn_zoo.data.sources import open_dataset

    if task != "semantic":
        raise ValueError(f"task must be semantic, got {task!r}")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"batch_size and limit must be at least 1, got {batch_size} and {limit}")
    dataset = open_dataset(data, split) if isinstance(data, (str, os.PathLike)) else data
    check_classes(model, dataset)
    if device is not None:
        model.to(device)
    total = min(len(dataset), limit or len(dataset))
    if not total:
        raise ValueError(f"{dataset.name} has no image to evaluate")
    rank, world, exchange = _processes()
    started = time.perf_counter()
    matrix = _count_all(model, dataset, range(rank, total, world), batch_size, amp, progress and rank == 0)
    matrix.reduce(exchange)
    report = _describe(model, dataset.name, split, task)
    report |= {"source": str(data) if data is not dataset else dataset.name}
    report |= {"weights": weights, "images": total, "amp": amp or "no", "seed": seed}
    report |= {"device": _device_name(model), "seconds": round(time.perf_counter() - started, 2)}
    return report | _scores(matrix, dataset.labels.names)


def _processes() -> tuple[int, int, Any]:
    """(rank, number of processes, what carries the exchange); accelerate is only asked where there are several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not torch.distributed.is_initialized():
        return 0, 1, None
    from accelerate import PartialState

    state = PartialState(cpu=on_cpu())
    return state.process_index, state.num_processes, state


def on_cpu() -> bool:
    """Whether accelerate must be told to stay on the CPU.

    Under torchrun on a machine without an accelerator it would otherwise open a process group and still report a
    single process (accelerate 1.15), so that every process would do all the work.
    """
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return wanted or not (torch.cuda.is_available() or torch.backends.mps.is_available())


def check_classes(model: nn.Module, dataset: Any) -> None:
    """ValueError naming the differences when model and data do not speak of the same classes in the same order."""
    ours, theirs = tuple(model.data.labels), tuple(dataset.labels.names)
    if not ours and model.num_classes == len(theirs):
        return
    if not ours or len(ours) != len(theirs):
        count = len(ours) or model.num_classes
        only_model = ", ".join(n for n in ours if n not in theirs) or "-"
        only_data = ", ".join(n for n in theirs if n not in ours) or "-"
        raise ValueError(
            f"the model has {count} classes, {dataset.name} has {len(theirs)}; "
            f"only in the model: {only_model}; only in the data: {only_data}"
        )
    different = [f"{i}: {a!r} / {b!r}" for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    if different:
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        raise ValueError(f"model and {dataset.name} name classes differently: {', '.join(different[:5])}{more}")


def _count_all(
    model: nn.Module, dataset: Any, indices: Sequence[int], batch_size: int, amp: str | None, progress: bool
) -> ConfusionMatrix:
    matrix = ConfusionMatrix(dataset.labels.num_classes, dataset.labels.ignore_index)
    with tqdm(total=len(indices), unit="img", desc="evaluate", disable=not progress, leave=False) as bar:
        for samples in _groups(dataset, indices, batch_size):
            maps = class_maps(model, [s.image for s in samples], amp)
            for sample, found in zip(samples, maps.cpu(), strict=True):
                _count(matrix, found, sample)
            bar.update(len(samples))
    return matrix


def _groups(dataset: Any, indices: Iterable[int], batch_size: int) -> Iterator[list[Any]]:
    """Consecutive samples of equal size, at most `batch_size` at a time."""
    group: list[Any] = []
    for i in indices:
        sample = dataset.sample(i)
        if group and (len(group) == batch_size or sample.image.shape != group[0].image.shape):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def class_maps(model: nn.Module, images: Sequence[np.ndarray], amp: str | None = None) -> Tensor:
    """What `predict` answers for images of equal size, without its scores and segments.

    Args:
        images: (H, W, 3) uint8 RGB each.
        amp: as in `evaluate`.

    Returns:
        Class ids (N, H, W) int64 on the model's device.
    """
    data = model.data
    half = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None, None: None}
    if amp not in half:
        raise ValueError(f"amp must be bf16, fp16 or no, got {amp!r}")
    pixels = [resize_for(data, load_image(image, len(data.mean)).pixels) for image in images]
    with inference(model) as (device, dtype):
        with torch.autocast(device.type, half[amp], enabled=half[amp] is not None):
            output = model(network_input(data, pixels, device, dtype))
        return postprocess.semantic(output, tuple(pixels[0].shape[1:]), images[0].shape[:2], stride=model.head.stride)


def _count(matrix: ConfusionMatrix, found: Tensor, sample: Any) -> None:
    try:
        matrix.update(found, sample.labels)
    except ValueError as error:
        raise ValueError(f"{sample.name}: {error}") from None


def _describe(model: nn.Module, data: str, split: str, task: str) -> dict[str, Any]:
    return {
        "model": model.spec.name,
        "weights": "",
        "data": data,
        "split": split,
        "task": task,
        "params": sum(p.numel() for p in model.parameters()),
        "versions": versions(),
        "commit": git_commit(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _scores(matrix: ConfusionMatrix, names: tuple[str, ...]) -> dict[str, Any]:
    scores = matrix.compute()
    table = [
        {"id": i, "name": name, "iou": _plain(iou), "acc": _plain(acc), "pixels": pixels}
        for i, (name, iou, acc, pixels) in enumerate(
            zip(names, scores["iou"], scores["acc"], scores["truth"], strict=True)
        )
    ]
    return {n: _plain(scores[n]) for n in ("miou", "pixel_acc", "mean_acc", "fwiou")} | {"classes": table}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a number; absent packages are left out."""
    from fapn_zoo import __version__

    found = {"python": platform.python_version(), "fapn-zoo": __version__}
    for package in ("torch", "torchvision", "timm", "numpy", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> str:
    """Revision of the checkout this package runs from, with "+" when tracked files were changed; "" without one."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))  # not some repository around site-packages
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _device_name(model: nn.Module) -> str:
    device = next(model.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def render(report: dict[str, Any]) -> str:
    """The report as a text table, in percent."""
    width = max([len(row["name"]) for row in report["classes"]] + [10])
    lines = [
        f"{report['model']}  {report['weights']}".rstrip(),
        f"{report['data']} {report['split']}: {report['images']} images, {report['seconds']} s on {report['device']}",
        "",
        f"{'class':<{width}}  {'IoU':>6}  {'acc':>6}",
    ]
    for row in report["classes"]:
        lines.append(f"{row['name']:<{width}}  {_percent(row['iou'])}  {_percent(row['acc'])}")
    lines.append("")
    means = {"miou": "mean IoU", "pixel_acc": "pixel acc", "mean_acc": "mean acc", "fwiou": "fw IoU"}
    for name, label in means.items():
        lines.append(f"{label:<{width}}  {_percent(report[name])}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{100 * value:6.2f}"


def write_report(
    report: dict[str, Any], json: str | os.PathLike | None = None, csv: str | os.PathLike | None = None
) -> None:
    """Writes the report as a JSON file and/or appends it as one row to a CSV table.

    Both are written beside their place and renamed. The CSV has the columns of `CSV_COLUMNS`, scores in percent with
    two decimals; a missing file is made with its header.

    Raises:
        ValueError: the CSV file has another header.
    """
    if json is not None:
        _write(Path(json), _to_json(report))
    if csv is not None:
        _write(Path(csv), _with_row(Path(csv), report))


def _to_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1) + "\n"


def _with_row(path: Path, report: dict[str, Any]) -> str:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    header = next(csv.reader(io.StringIO(text)), [])
    if header and header != CSV_COLUMNS:
        raise ValueError(f"{path} has the columns {','.join(header)}; expected {','.join(CSV_COLUMNS)}")
    row: dict[str, Any] = {name: report.get(name, "") for name in CSV_COLUMNS}
    for name in ("miou", "pixel_acc", "mean_acc", "fwiou"):
        row[name] = "" if report[name] is None else f"{100 * report[name]:.2f}"
    row["torch"], row["fapn_zoo"] = report["versions"].get("torch", ""), report["versions"].get("fapn-zoo", "")
    row["seed"] = "" if report["seed"] is None else report["seed"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    if not header:
        writer.writeheader()
    writer.writerow(row)
    return text + ("\n" if text and not text.endswith("\n") else "") + buffer.getvalue()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
