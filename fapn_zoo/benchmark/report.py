"""What a benchmark found, as a text table and as rows of a CSV file; and sizes as they are written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.files import check_writable, make_folder, read_text, write_text

CSV_COLUMNS = (
    "model size batch device dtype compile channels_last threads rounds params macs macs_backbone macs_neck macs_head "
    "latency_ms p10_ms p90_ms backbone_ms neck_ms head_ms postprocess_ms fps fps_forward peak_mib ratio ratio_to "
    "torch torchvision timm fapn_zoo commit date command"
).split()


def parse_size(text: str) -> tuple[int, int]:
    """``"512"`` or ``"512x1024"`` -> (height, width). Raises ValueError for anything else."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(size) < 1:
        raise ValueError(f"size {text!r}; write 512 or 512x1024 (height x width)")
    return size


def render(report: Mapping[str, Any]) -> str:
    """The report of `benchmark` as text: one line per job, times in milliseconds."""
    settings = report["settings"]
    manner = [report["device"], settings["dtype"], f"batch {settings['batch']}", f"{settings['rounds']} rounds"]
    manner += [name for name in ("compile", "channels_last") if settings[name]]
    lines = [
        [
            "model",
            "size",
            "params",
            "MACs",
            "latency",
            "p10..p90",
            "backbone",
            "neck",
            "head",
            "post",
            "FPS",
            "FPS fwd",
            "memory",
            "ratio",
        ]
    ]
    for row in report["rows"]:
        latency, stages, peak = row["latency_ms"], row["stages_ms"], row["peak_bytes"]
        lines.append(
            [
                row["model"],
                _size(row),
                f"{row['params'] / 1e6:.1f} M",
                f"{row['macs'] / 1e9:.1f} G",
                f"{latency['median']:.1f}",
                f"{latency['p10']:.1f}..{latency['p90']:.1f}",
                *(f"{ms:.1f}" for ms in stages.values()),
                f"{row['fps']:.1f}",
                f"{row['fps_forward']:.1f}",
                "-" if peak is None else f"{peak / 2**20:.0f} MiB",
                f"{row['ratio']:.2f}",
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = [
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    note = "Milliseconds, medians; ratio: latency to that of the first model of this size; FPS fwd: forward pass only."
    return "\n".join([", ".join(manner), "", *table, "", note])


def append_csv(report: Mapping[str, Any], path: str | Path) -> None:
    """Appends a row per job to a CSV file, which is made with its header where it is missing.

    Raises:
        ValueError: the file has other columns, or is no UTF-8 text; nothing is written then.
        OSError: nothing can be written there.
    """
    path, text = Path(path), csv_text(path)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    if not text:
        writer.writeheader()
    firsts: dict[str, str] = {}
    for row in report["rows"]:
        first = firsts.setdefault(_size(row), row["model"])
        writer.writerow(_flat(report, row) | {"ratio_to": first})
    make_folder(path.parent)
    write_text(path, text + ("\n" if text and not text.endswith("\n") else "") + buffer.getvalue())


def csv_text(path: str | Path) -> str:
    """What a CSV file of benchmarks holds, "" where there is none; errors as `append_csv`."""
    path = Path(path)
    check_writable(path)
    text = read_text(path) if path.is_file() else ""
    header = next(csv.reader(io.StringIO(text)), CSV_COLUMNS)
    if header != CSV_COLUMNS:
        raise ValueError(f"{path} has the columns {','.join(header)}; expected {','.join(CSV_COLUMNS)}")
    return text


def _flat(report: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in {**report, **report["settings"], **row}.items() if name in CSV_COLUMNS}
    latency, peak = row["latency_ms"], row["peak_bytes"]
    found |= {"size": _size(row), "latency_ms": f"{latency['median']:.2f}"}
    found |= {f"{share}_ms": f"{latency[share]:.2f}" for share in ("p10", "p90")}
    found |= {f"{stage}_ms": f"{ms:.2f}" for stage, ms in row["stages_ms"].items()}
    found |= {name: f"{row[name]:.2f}" for name in ("fps", "fps_forward", "ratio")}
    found["peak_mib"] = "" if peak is None else f"{peak / 2**20:.1f}"
    versions = {name.replace("-", "_"): version for name, version in report["versions"].items()}
    return found | {name: versions.get(name, "") for name in ("torch", "torchvision", "timm", "fapn_zoo")}


def _size(row: Mapping[str, Any]) -> str:
    return "x".join(map(str, row["size"]))
