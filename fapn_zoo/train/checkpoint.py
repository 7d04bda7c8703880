"""What a run keeps in OUT: checkpoints that are whole or absent, its log and scores; and whose folder it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from fapn_zoo.runtime.files import read_json, write_json, write_text
from fapn_zoo.runtime.progress import bar
from fapn_zoo.train.settings import Settings

RUN_FILES = ("settings.json", "log.jsonl", "metrics.csv", "eval.json", "checkpoint", "model")


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


class RunLog:
    """Progress bar and OUT/log.jsonl: one line per `log_every` steps, means over these steps."""

    def __init__(self, out: Path, settings: Settings, step: int, main: bool) -> None:
        self.settings, self.main = settings, main
        self.path = out / "log.jsonl"
        if main:  # lines of steps that a killed run logged after its checkpoint will be written again
            lines = self.path.read_text().splitlines() if self.path.is_file() else []
            write_text(self.path, "".join(f"{line}\n" for line in lines if _step_of(line) <= step))
        self.bar = bar(main, total=settings.steps, initial=step, unit="step")
        self.restart()

    def restart(self) -> None:
        self.sums: dict[str, float] = {}
        self.steps, self.waited, self.paused = 0, 0.0, 0.0
        self.clock = self.mark = time.perf_counter()

    def add(self, step: int, values: dict[str, float], waited: float) -> None:
        s = self.settings
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.waited += waited
        self.mark = time.perf_counter()
        self.bar.update()
        if step % s.log_every and step != s.steps:
            return
        seconds = max(self.mark - self.clock - self.paused, 1e-9)
        line = {"step": step, **{n: v / self.steps for n, v in self.sums.items()}, "lr": values["lr"]}
        line["img_s"] = round(self.steps * s.batch_size / seconds, 3)
        line["data_wait"] = round(self.waited / seconds, 4)
        shown = {"loss": f"{line['loss']:.4f}", "lr": f"{line['lr']:.2e}", "img/s": f"{line['img_s']:.1f}"}
        self.bar.set_postfix(shown, refresh=False)
        if self.main:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.restart()

    def restart_clock(self) -> None:
        """Leaves the time since the last step (evaluation, checkpoint) out of the speed."""
        now = time.perf_counter()
        self.paused += now - self.mark
        self.mark = now

    def close(self) -> None:
        self.bar.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # the last line of a run that was killed while writing it
        return float("inf")


def add_row(path: Path, step: int, scores: dict[str, float | None]) -> None:
    """Puts the scores of a step into metrics.csv, in place of rows of this step and later ones."""
    lines = path.read_text().splitlines()[1:] if path.is_file() else []
    kept = [line for line in lines if int(line.split(",")[0]) < step]
    row = ",".join([str(step), *("" if score is None else f"{score:.6f}" for score in scores.values())])
    write_text(path, "\n".join([",".join(["step", *scores]), *kept, row]) + "\n")
