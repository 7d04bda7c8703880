"""Whose folder OUT is: where a run starts from, and what it may take away."""

from __future__ import annotations

import shutil
from pathlib import Path

from fapn_zoo.runtime.files import read_json, write_json
from fapn_zoo.train.checkpoint import latest_checkpoint
from fapn_zoo.train.settings import Settings

# The settings go last: what is left by a process that is killed meanwhile can still be resumed.
RUN_FILES = ("log.jsonl", "metrics.csv", "eval.json", "checkpoint", "model", "settings.json")


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
    if settings.resume != "auto":
        raise ValueError(f"{out} holds a run ({', '.join(held)}); use resume=auto, overwrite=true or another out=")
    if not (out / "settings.json").is_file():
        raise ValueError(f"{out} cannot be resumed: it has no settings.json; use overwrite=true or another out=")
    saved, mine = read_json(out / "settings.json"), settings.to_dict()
    if different := settings.differences(saved):
        pairs = ", ".join(f"{k} (was {saved.get(k)!r}, now {mine.get(k)!r})" for k in different)
        raise ValueError(f"{out} was run with other settings: {pairs}; use the same, overwrite=true or another out=")
    return latest_checkpoint(out / "checkpoint")


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def claim_folder(settings: Settings, start: Path | None) -> None:
    """Makes OUT this run's own: without a checkpoint to start from, an older run's files go. Writes settings.json."""
    out = Path(settings.out)
    for path in (out / name for name in RUN_FILES if start is None):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(out / "settings.json", settings.to_dict())
