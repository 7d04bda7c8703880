"""Trains the rows of a plan, several at once, and compares those of a seed on the same images.

    python hub/train_all.py recipes/claim/detectron2.json --out OUT --jobs 2 data=CAMVID backbone_weights=FILE
    python hub/train_all.py recipes/claim/long.json --out OUT --jobs 6 --budget 9 data=CAMVID backbone_weights=FILE

A plan is a JSON object: `recipe`; `seeds`; `rows`, by name the settings in which a row differs, the most valuable
first; and `eval`, arguments of `fapn-zoo eval`. All rows of a seed are trained before the next seed begins, so that a
budget that ends early leaves whole comparisons. OUT/ROW/SEED is a run, which goes on where it stopped; OUT/seed_N.json
compares the rows of a seed with the first one, OUT/results.csv has a line per model. What exists is not made again. A
run that fails is told and left out. NAME=VALUE words are settings of every run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Plan:
    """What is to be run, where, and how much time is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        plan = json.loads(options.plan.read_text(encoding="utf-8"))
        self.recipe, self.rows, self.seeds = plan["recipe"], plan["rows"], plan["seeds"]
        self.eval, self.out, self.words = plan["eval"].split(), options.out, options.settings
        self.data = next((word.partition("=")[2] for word in self.words if word.startswith("data=")), None)
        if self.data is None:
            raise SystemExit("error: data= is missing among the settings")
        self.ends = time.monotonic() + options.budget * 60
        self.longest = {"train": 0.0, "eval": 0.0}

    def started(self, kind: str) -> bool:
        """Whether there is time for one more, as far as those before it tell."""
        return time.monotonic() + 1.1 * self.longest[kind] < self.ends

    def call(self, kind: str, words: list[str], log: Path) -> bool:
        """One `fapn-zoo` command, its words into a log; whether it ended well within the budget."""
        begin = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "fapn_zoo.cli", *words]
        with open(log, "a", encoding="utf-8") as file:
            try:
                left = max(self.ends - begin, 1)
                good = subprocess.run(command, stdout=file, stderr=file, env=environment, timeout=left).returncode == 0
            except subprocess.TimeoutExpired:
                good = False
        seconds = time.monotonic() - begin
        if good:
            self.longest[kind] = max(self.longest[kind], seconds)
        print(f"{log.relative_to(self.out)}: {'done' if good else 'FAILED'} after {seconds:.0f} s", flush=True)
        return good

    def train(self, row: str, seed: int) -> bool:
        folder = self.out / row / str(seed)
        if (folder / "model").is_dir():
            return True
        if not self.started("train"):
            return False
        words = ["train", self.recipe, *self.words, *self.rows[row].split(), f"seed={seed}", f"out={folder}"]
        return self.call("train", [*words, "resume=auto"], folder.with_suffix(".log"))

    def compare(self, seed: int, rows: list[str]) -> None:
        report = self.out / f"seed_{seed}.json"
        if report.exists() or not rows or not self.started("eval"):
            return
        rows_file = self.out / f"rows_{seed}.csv"
        rows_file.unlink(missing_ok=True)
        models = [str(self.out / row / str(seed) / "model") for row in rows]
        words = ["eval", *models, "--data", self.data, *self.eval, "--seed", str(seed), "--csv", str(rows_file)]
        self.call("eval", [*words, "--json", str(report)], self.out / f"seed_{seed}.log")

    def run_all(self, jobs: int) -> None:
        with ThreadPoolExecutor(jobs) as pool, ThreadPoolExecutor(len(self.seeds)) as comparing:
            for seed in self.seeds:
                runs = {row: pool.submit(self.train, row, seed) for row in self.rows}
                comparing.submit(self._compare_when_done, seed, runs)

    def _compare_when_done(self, seed: int, runs: dict) -> None:
        self.compare(seed, [row for row, done in runs.items() if done.result()])


def joined(files: Iterator[Path]) -> str:
    """CSV files with equal heads as one."""
    texts = [file.read_text(encoding="utf-8").splitlines() for file in sorted(files)]
    return "".join(f"{line}\n" for i, lines in enumerate(texts) for line in (lines if i == 0 else lines[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="JSON file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--budget", type=float, default=float("inf"), help="minutes; none is begun that would not end")
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    options = parser.parse_intermixed_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(options)
    plan.run_all(options.jobs)
    (options.out / "results.csv").write_text(joined(options.out.glob("rows_*.csv")), encoding="utf-8")


if __name__ == "__main__":
    main()
