"""Checkpoints of a run: whole or absent."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes `folder/step-XXXXXXXX/state.pt` and then removes older ones.

    The new folder gets its name by one rename after its last byte is on disk; a run that dies at any moment leaves
    at least one whole checkpoint behind. The state must load with weights_only=True: tensors, numbers, strings and
    containers of them.
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
    return max(folder.glob("step-*"), default=None)


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
