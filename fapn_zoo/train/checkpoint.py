"""Checkpoints of a run: whole or absent, found out when they are damaged, and as many as there is room for."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from fapn_zoo.runtime.files import (
    make_folder,
    new_folder,
    read_json,
    remove_folder,
    remove_leavings,
    sync_folder,
    write_whole,
)
from fapn_zoo.train.log import read_scores

logger = logging.getLogger(__name__)

STATE, FACTS = "state.pt", "state.json"
Made = TypeVar("Made")


class Checkpoints:
    """`OUT/checkpoint/step-XXXXXXXX/`: the last two of a run, and of those that were evaluated the best.

    The older ones are for the day on which the last is damaged. They give way where there is no room for what is to
    be written: a run fits wherever three fit, and goes on with two. The last one is never given up.

    Args:
        out: the run's folder, in which nobody else writes. Its metrics.csv says which is the best, by the first score.
    """

    def __init__(self, out: Path) -> None:
        self.folder, self.metrics = out / "checkpoint", out / "metrics.csv"
        self.saved: int | None = None  # the step up to which all is on the disk
        self.told = False

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
        last = max((_size(path) for path in listed(self.folder)[-1:]), default=0)
        while shutil.disk_usage(self.folder).free < last and self._give_up(final):
            pass  # else it would be written in vain
        self.making_room(lambda: _write(final, {"step": step, **state}), final)
        self.saved = step
        self._clean()

    def making_room(self, write: Callable[[], Made], final: Path | None = None) -> Made:
        """What `write` returns; where it finds no room, once more without the oldest checkpoint, and so on.

        Raises:
            OSError: of `write`, when only the last checkpoint is left.
        """
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._give_up(final):
                    raise

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

    def _give_up(self, final: Path | None) -> bool:
        """Removes the checkpoint that is needed least; False where there is only the last."""
        held = listed(self.folder)
        if len(held) < 2:
            return False
        soon = self._kept([*held, final] if final else held)
        best = self._kept(held)[0]
        chosen = min(held[:-1], key=lambda path: (path in soon, path == best, path))
        if chosen in soon and not self.told:
            self.told = True
            logger.warning("little room in %s: older checkpoints give way, %s first", self.folder, chosen.name)
        remove_folder(chosen)
        return True


def _write(final: Path, state: dict[str, Any]) -> None:
    with new_folder(final) as part:
        summed = None

        def write(file: BinaryIO) -> None:
            nonlocal summed
            summed = _Summed(file)
            torch.save(state, summed)

        write_whole(part / STATE, write, sync=True)
        facts = json.dumps({"bytes": summed.size, "crc32": f"{summed.value:08x}"}).encode()
        write_whole(part / FACTS, lambda file: file.write(facts), sync=True)
        if final.exists():
            remove_folder(final)
        os.rename(part, final)
    sync_folder(final.parent)


class _Summed:
    """A file to write to that knows the size and the CRC-32 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.value = file, 0, 0

    def write(self, data: Any) -> int:
        self.size += memoryview(data).nbytes
        self.value = zlib.crc32(data, self.value)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _step(path: Path) -> int:
    return int(path.name[5:])


def _size(path: Path) -> int:
    return (path / STATE).stat().st_size if (path / STATE).is_file() else 0


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
            check_checkpoint(path)
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


def check_checkpoint(path: Path) -> None:
    """Raises ValueError, which names the file and says what is wrong with it, unless all its bytes are as written."""
    file = path / STATE
    if not (path / FACTS).is_file():  # of an earlier version, or lost: reading it finds at least where it is cut
        load_checkpoint(path)
        return
    try:
        facts = read_json(path / FACTS)
        bytes_then, sum_then = facts["bytes"], facts["crc32"]
    except (OSError, ValueError, KeyError) as error:
        reason = f"{FACTS} beside it holds no checksum; without that file it is read unchecked"
        raise ValueError(f"{file} is not a readable checkpoint ({reason})") from error
    try:
        size, value = 0, 0
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                size, value = size + len(block), zlib.crc32(block, value)
        if size != bytes_then:
            raise ValueError(f"cut: it has {size} of {bytes_then} bytes")
        if f"{value:08x}" != sum_then:
            raise ValueError("its bytes are not those that were written")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a readable checkpoint ({error})") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads the state of a checkpoint, on the CPU; ValueError names a file that is damaged or no such state.

    Only tensors, numbers, strings and containers of them are read; nothing that a file asks for is run.
    """
    file = path / STATE
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError... for the same mishap
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {refused[1]}" if refused else (str(error).splitlines() or [""])[0]
        raise ValueError(f"{file} is not a readable checkpoint ({type(error).__name__}: {reason})") from error
