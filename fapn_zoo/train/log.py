"""What a run writes down while it trains: log.jsonl, metrics.csv and the progress bar."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fapn_zoo.runtime.files import append_line, json_text, read_text, write_text
from fapn_zoo.runtime.progress import bar
from fapn_zoo.runtime.tables import as_csv
from fapn_zoo.train.settings import Settings


class RunLog:
    """Progress bar and OUT/log.jsonl: one line per `log_every` steps, means over these steps.

    Args:
        step: up to which the run has come; what a killed run wrote down of later steps will be written again.
        since: "steps" and "sums" since the last line, which a checkpoint holds, too.
        track: called with the values of each line and their step.
    """

    def __init__(
        self, out: Path, settings: Settings, step: int, main: bool, since: dict[str, Any], track: Callable | None = None
    ) -> None:
        self.settings, self.main, self.since, self.track = settings, main, since, track
        self.path = out / "log.jsonl"
        if main:
            lines = read_text(self.path).splitlines() if self.path.is_file() else []
            kept = "".join(f"{line}\n" for line in lines if _step_of(line) <= step)
            write_text(self.path, kept)
            cut_rows(out / "metrics.csv", step)
        self.bar = bar(main, total=settings.steps, initial=step, unit="step")
        self._restart_clock()

    def _restart_clock(self) -> None:
        self.timed, self.waited, self.paused = 0, 0.0, 0.0
        self.clock = self.mark = time.perf_counter()

    def add(self, step: int, values: dict[str, float], waited: float, last: bool) -> None:
        """Takes up the losses of a step and the seconds that it waited for data; writes a line where one is due."""
        s, sums = self.settings, self.since["sums"]
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        self.since["steps"] += 1
        self.timed += 1
        self.waited += waited
        self.mark = time.perf_counter()
        self.bar.update()
        if step % s.log_every and not last:
            return
        seconds = max(self.mark - self.clock - self.paused, 1e-9)
        line = {"step": step, **{n: v / self.since["steps"] for n, v in sums.items()}, "lr": values["lr"]}
        line["img_s"] = round(self.timed * s.batch_size / seconds, 3)
        line["data_wait"] = round(self.waited / seconds, 4)
        shown = {"loss": f"{line['loss']:.4f}", "lr": f"{line['lr']:.2e}", "img/s": f"{line['img_s']:.1f}"}
        self.bar.set_postfix(shown, refresh=False)
        if self.main:
            append_line(self.path, json_text(line, self.path, indent=None))
        if self.track:
            self.track({name: value for name, value in line.items() if name != "step"}, step)
        self.since.update(steps=0, sums={})
        self._restart_clock()

    def leave_out(self) -> None:
        """Leaves the time since the last step (evaluation, checkpoint) out of the speed."""
        now = time.perf_counter()
        self.paused += now - self.mark
        self.mark = now

    def close(self) -> None:
        self.bar.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):  # the last line of a run that was killed while writing it
        return float("inf")


def add_row(path: Path, step: int, scores: dict[str, float | None]) -> None:
    """Puts the scores of a step into metrics.csv, in place of rows of this step and later ones."""
    kept = [row for row in _rows(path) if int(row[0]) < step]
    row = [step, *("" if score is None else f"{score:.6f}" for score in scores.values())]
    write_text(path, as_csv([["step", *scores], *kept, row]))


def cut_rows(path: Path, step: int) -> None:
    """Removes the rows of later steps from metrics.csv."""
    rows = _rows(path)
    kept = [row for row in rows if int(row[0]) <= step]
    if len(kept) < len(rows):
        write_text(path, read_text(path).splitlines()[0] + "\n" + as_csv(kept))


def read_table(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Of every column of metrics.csv the (step, percent) that are defined."""
    names = read_text(path).splitlines()[0].split(",")[1:] if path.is_file() else []
    numbers = [(int(step), [float(v) if v else None for v in values]) for step, *values in _rows(path)]
    return {n: [(step, 100 * v[i]) for step, v in numbers if v[i] is not None] for i, n in enumerate(names)}


def read_scores(path: Path) -> dict[int, float | None]:
    """The first score of every evaluated step in metrics.csv; None where it was undefined."""
    return {int(row[0]): float(row[1]) if re.fullmatch(r"-?\d+\.\d+", row[1]) else None for row in _rows(path)}


def _rows(path: Path) -> list[list[str]]:
    """The rows of metrics.csv as text, in their order; lines that are no such row are left out."""
    lines = read_text(path).splitlines()[1:] if path.is_file() else []
    rows = [line.split(",") for line in lines]
    return [row for row in rows if len(row) > 1 and row[0].isdigit()]
