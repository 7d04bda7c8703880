"""What a run writes down while it trains: log.jsonl, metrics.csv and the progress bar."""

from __future__ import annotations

import json
import time
from pathlib import Path

from fapn_zoo.runtime.files import json_text, write_text
from fapn_zoo.runtime.progress import bar
from fapn_zoo.train.settings import Settings


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
                file.write(json_text(line, self.path, indent=None) + "\n")
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
