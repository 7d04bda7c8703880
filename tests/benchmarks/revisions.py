"""Two states of this repository side by side: import, `list_models`, `predict` and `eval` of the embedded model.

    python tests/benchmarks/revisions.py --before HEAD~1 --csv hub/results/revisions_speed.csv

Every measurement is a fresh process; the states take turns within a round, the first of a round changes, and medians
over rounds are compared. `predict` is the call with a picture 360 x 480, `eval` the call with drawn scenes, each
after one that is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from table import print_row, run_facts, write_csv

ROOT = Path(__file__).resolve().parents[2]
MODEL = "perpixel_fapn_resnet18_slim_camvid"
CALLS = f"""
import json, statistics, sys, time
times = [time.perf_counter()]
import fapn_zoo
times.append(time.perf_counter())
fapn_zoo.list_models()
times.append(time.perf_counter())
found = dict(zip(("import", "list_models"), (b - a for a, b in zip(times, times[1:]))))
import numpy, torch
from fapn_zoo.data.scenes import generate_scene
from fapn_zoo.evaluate import evaluate
torch.set_num_threads(1)
model = fapn_zoo.create_model({MODEL!r}, pretrained=True)
image = generate_scene(0, (360, 480)).image
def timed(call, count):
    taken = []
    for _ in range(count + 1):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
count = int(sys.argv[1])
found["predict"] = timed(lambda: model.predict(image), 4 * count)
found["eval"] = timed(lambda: evaluate(model, f"scenes:{{4 * count}}@360x480", progress=False), count)
print(json.dumps(found))
"""


def child(tree: Path, calls: int) -> dict[str, float]:
    """Seconds of each call in a process that imports the package from `tree`."""
    env = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CALLS, str(calls)]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)


def unpack(revision: str, folder: Path) -> Path:
    """A revision's files in `folder`; a path that is a folder is taken as it is."""
    if Path(revision).is_dir():
        return Path(revision).resolve()
    folder.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", revision], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def main() -> None:
    from fapn_zoo.runtime.device import processor

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", default="HEAD", help="a commit, or a folder (default: HEAD)")
    parser.add_argument("--after", default=str(ROOT), help="the same (default: the files as they are)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=3, help="evaluations in one process, with 4 predictions each")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trees = [unpack(revision, folder / name) for revision, name in ((args.before, "before"), (args.after, "after"))]
        runs: list[list[dict[str, float]]] = [[], []]
        for turn in range(args.warmup + args.rounds):
            for which in (0, 1) if turn % 2 else (1, 0):
                runs[which].append(child(trees[which], args.calls))
    rows = []
    for name in runs[0][0]:
        # the first rounds warm the caches of the disk, of bytecode and of numba
        before, after = (statistics.median(run[name] for run in side[args.warmup :]) for side in runs)
        row = {"what": name, "before_ms": f"{1e3 * before:.2f}", "after_ms": f"{1e3 * after:.2f}"}
        rows.append(row | {"ratio": f"{after / before:.3f}", "rounds": args.rounds, "processor": processor()})
        print_row(rows[-1])
    if args.csv:
        write_csv(args.csv, rows, run_facts())


if __name__ == "__main__":
    main()
