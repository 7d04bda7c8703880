"""What a benchmark found, as a text table and as rows of a CSV file; and sizes as they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.tables import aligned, append_rows, as_csv, read_rows

CSV_COLUMNS = (
    "model size batch device dtype compile channels_last threads rounds params macs macs_backbone macs_neck macs_head "
    "latency_ms p10_ms p90_ms backbone_ms neck_ms head_ms postprocess_ms fps fps_forward peak_mib ratio ratio_to "
    "torch torchvision timm fapn_zoo commit date command"
).split()


def parse_size(text: str) -> tuple[int, int]:
    """`"512"` or `"512x1024"` -> (height, width). Raises ValueError for anything else."""
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
    head = "model,size,params,MACs,latency,p10..p90,backbone,neck,head,post,FPS,FPS fwd,memory,ratio".split(",")
    note = "Milliseconds, medians; ratio: latency to that of the first model of this size; FPS fwd: forward pass only."
    return "\n".join([", ".join(manner), "", *aligned([head, *map(_cells, report["rows"])]), "", note])


def _cells(row: Mapping[str, Any]) -> list[str]:
    latency, peak = row["latency_ms"], row["peak_bytes"]
    return [
        row["model"],
        _size(row),
        f"{row['params'] / 1e6:.1f} M",
        f"{row['macs'] / 1e9:.1f} G",
        f"{latency['median']:.1f}",
        f"{latency['p10']:.1f}..{latency['p90']:.1f}",
        *(f"{ms:.1f}" for ms in row["stages_ms"].values()),
        f"{row['fps']:.1f}",
        f"{row['fps_forward']:.1f}",
        "-" if peak is None else f"{peak / 2**20:.0f} MiB",
        f"{row['ratio']:.2f}",
    ]


def append_csv(report: Mapping[str, Any], path: str | Path) -> None:
    """Appends a row per job to a CSV file, which is made with its header where it is missing.

    Raises:
        ValueError: the file has other columns, or is no UTF-8 text; nothing is written then.
        OSError: nothing can be written there.
    """
    firsts: dict[str, str] = {}
    rows = [_flat(report, row) | {"ratio_to": firsts.setdefault(_size(row), row["model"])} for row in report["rows"]]
    append_rows(Path(path), CSV_COLUMNS, rows)


def csv_text(path: str | Path) -> str:
    """What a CSV file of benchmarks holds, "" where there are no rows; errors as `append_csv`."""
    rows = read_rows(Path(path), CSV_COLUMNS)
    return as_csv([CSV_COLUMNS, *rows]) if rows else ""


def _flat(report: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of one job by column."""
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
