"""Checkpoints that are either whole or absent, and the rules by which a folder belongs to a run."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from fapn_zoo.runtime.files import make_folder, write_text
from fapn_zoo.train.settings import Settings

RUN_FILES = ("settings.json", "log.jsonl", "metrics.csv", "eval.json", "checkpoint", "model")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes `folder/step-XXXXXXXX/state.pt` and then removes older ones.

    The new folder gets its name by one rename after its last byte is on disk; a run that dies at any moment leaves
    at least one whole checkpoint behind.

    Args:
        state: tensors, numbers, strings and containers of them (it must load with weights_only=True).
    """
    final = folder / f"step-{step:08d}"
    if final.exists():
        return final
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with open(temporary / "state.pt", "wb") as file:
        torch.save({"step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, final)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step, or None."""
    found = sorted(folder.glob("step-*")) if folder.is_dir() else []
    return found[-1] if found else None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a state written by save_checkpoint, on the CPU; ValueError names a file that is damaged or no such state.

    Only tensors, numbers, strings and containers of them are read; nothing that a file asks for is run.
    """
    file = path / "state.pt"
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError... for the same mishap
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {refused[1]}" if refused else (str(error).splitlines() or [""])[0]
        raise ValueError(f"{file} is not a readable checkpoint ({type(error).__name__}: {reason})") from error


def starting_point(settings: Settings) -> Path | None:
    """Which checkpoint in OUT to continue from; None starts at step 0. Changes nothing on disk.

    Raises:
        ValueError: OUT holds a run and neither resume=auto nor overwrite=true was given, or it is to be resumed with
            settings that would change the result; the message names them.
    """
    out = Path(settings.out)
    held = [name for name in ("log.jsonl", "checkpoint", "model") if _has_content(out / name)]
    if not held or settings.overwrite:
        return None
    if settings.resume == "auto":
        return _resumable(settings, out)
    raise ValueError(f"{out} holds a run ({', '.join(held)}); use resume=auto, overwrite=true or another out=")


def claim_folder(settings: Settings, start: Path | None) -> None:
    """Makes OUT this run's own: without a checkpoint to start from, an older run's files go. Writes settings.json."""
    out = Path(settings.out)
    make_folder(out)
    for name in RUN_FILES if start is None else ():
        _remove(out / name)
    write_text(out / "settings.json", json.dumps(settings.to_dict(), indent=1) + "\n")


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def _resumable(settings: Settings, out: Path) -> Path | None:
    file = out / "settings.json"
    if not file.is_file():
        raise ValueError(f"{out} cannot be resumed: it has no settings.json; use overwrite=true or another out=")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from None
    different = settings.differences(saved)
    if different:
        mine = settings.to_dict()
        pairs = ", ".join(f"{k} (was {saved.get(k)!r}, now {mine.get(k)!r})" for k in different)
        raise ValueError(f"{out} was run with other settings: {pairs}; use the same, overwrite=true or another out=")
    return latest_checkpoint(out / "checkpoint")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
