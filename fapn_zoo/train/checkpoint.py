"""Checkpoints of a run: whole or absent, and found out when they are damaged."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fapn_zoo.runtime.files import make_folder, new_folder, remove_folder, remove_leavings, sync_folder, write_whole
from fapn_zoo.train.log import read_scores

logger = logging.getLogger(__name__)

STATE = "state.pt"


class Checkpoints:
    """`OUT/checkpoint/step-XXXXXXXX/`: the last two of a run, and of those that were evaluated the best.

    The older ones are for the day on which the last is damaged.

    Args:
        out: the run's folder, in which nobody else writes. Its metrics.csv says which is the best, by the first score.
    """

    def __init__(self, out: Path) -> None:
        self.folder, self.metrics = out / "checkpoint", out / "metrics.csv"
        self.saved: int | None = None  # the step up to which all is on the disk

    def go_on(self, start: Path | None) -> None:
        """Takes up a run at a checkpoint, which is whole: later ones are not, and go. None: there is no checkpoint."""
        if start is not None:
            self.saved = _step(start)
            for path in listed(self.folder):
                if _step(path) > self.saved:
                    remove_folder(path)
        self._clean()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes `step-XXXXXXXX/state.pt` and then removes what is too old.

        The new folder gets its name by one rename after its last byte is on disk; a run that dies at any moment leaves
        at least one whole checkpoint behind. The state must load with weights_only=True: tensors, numbers, strings and
        containers of them.

        Raises:
            OSError: it could not be written; what was there before is still there.
        """
        if step == self.saved:
            return
        final = self.folder / f"step-{step:08d}"
        make_folder(self.folder)
        self._clean()
        _write(final, {"step": step, **state})
        self.saved = step
        self._clean()

    def best(self) -> Path:
        """That of the best evaluation among those in the folder; the last one where none of them was evaluated."""
        held = listed(self.folder)
        found = self._kept(held)[0]
        return found if read_scores(self.metrics).get(_step(found)) is not None else held[-1]

    def _clean(self) -> None:
        remove_leavings(self.folder, alone=True)
        held = listed(self.folder)
        for path in held:
            if path not in self._kept(held):
                remove_folder(path)

    def _kept(self, held: list[Path]) -> list[Path]:
        """The best first and the last last."""
        scores = read_scores(self.metrics)
        best = [path for path in held if scores.get(_step(path)) is not None]
        best = sorted(best, key=lambda path: (scores[_step(path)], _step(path)))[-1:]
        return [*best, *(path for path in held[-2:] if path not in best)]


def _write(final: Path, state: dict[str, Any]) -> None:
    with new_folder(final) as part:
        write_whole(part / STATE, lambda file: torch.save(state, file), sync=True)
        if final.exists():
            remove_folder(final)
        os.rename(part, final)
    sync_folder(final.parent)


def _step(path: Path) -> int:
    return int(path.name[5:])


def listed(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last one last; whether they are whole is another question."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(found, key=_step)


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step, or None where there is no checkpoint. Warns of damaged ones.

    Raises:
        ValueError: there are checkpoints, and all of them are damaged.
    """
    damaged: list[ValueError] = []
    for path in reversed(listed(folder)):
        try:
            load_checkpoint(path, mapped=True)
        except ValueError as error:
            damaged.append(error)
            continue
        for error in damaged:
            logger.warning("%s; going on from the older %s", error, path)
        return path
    if damaged:
        older = f", and none of {len(damaged) - 1} older ones either" if damaged[1:] else ", and there is no other"
        raise ValueError(f"{damaged[0]}{older}; start anew with overwrite=true or another out=")
    return None


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Reads the state of a checkpoint, on the CPU; ValueError names a file that is damaged or no such state.

    Every byte of the state is compared with the checksums that torch.save writes. Only tensors, numbers, strings and
    containers of them are read; nothing that a file asks for is run.

    Args:
        mapped: leave the tensors in the file, where it only is to be known that they are whole.
    """
    file = path / STATE
    try:
        with zipfile.ZipFile(file) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the bytes of {damaged} are not those that were written")
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError... for the same mishap
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {refused[1]}" if refused else (str(error).splitlines() or [""])[0]
        raise ValueError(f"{file} is not a readable checkpoint ({type(error).__name__}: {reason})") from error
