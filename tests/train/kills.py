"""Trains a tiny net on a small tmpfs, in processes that are killed at random, and compares with a run that was not.

    python tests/train/kills.py DATA SCRATCH [KILLS [SEED]]

Half of the kills come at a random moment, half at a random system call that makes, writes, renames or removes a file of
the run. The processes are forked from one that has imported everything, so that a start takes no time. The last line
is a JSON object; "room" is that of four checkpoints where a tmpfs can be mounted (root, or `unshare -rm` before
python), else null.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fapn_zoo.runtime import files
from fapn_zoo.train.checkpoint import load_checkpoint
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings

SMALL_FILES = 160 * 1024  # bytes of all but checkpoints and weights
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}
TIMES = ("img_s", "data_wait")


def settings(data: str, out: Path) -> Settings:
    """With all the state there is, and an evaluation that is now and then the best."""
    arguments = {"neck_out_channels": 16, "head_mask_channels": 16, "head_dropout": 0.2}
    steps = {"steps": 11, "batch_size": 2, "checkpoint_every": 2, "eval_every": 4, "log_every": 2}
    options = {"lr": 3e-3, "ema": 0.9, "warmup_steps": 4, "micro_batch": 1, "threads": 1, "resume": "auto"}
    model = {"model": "perpixel_fpn", "backbone": "test_efficientnet", "model_args": arguments}
    return Settings(data=data, crop=(32, 48), out=str(out), **model, **steps, **options)


def fork(action: Callable[[], Any]) -> int:
    """The process id of a child that does something; it exits with 0, or with 1 after an error, which it prints."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        logging.disable(logging.INFO)
        action()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def dies_at(count: int, out: Path, chosen: Settings) -> None:
    """Trains and is killed at the call of this number that changes files in `out`."""
    left = count

    def note(event: str, arguments: tuple = ()) -> None:
        nonlocal left
        if event == "write" or (event in EVENTS and str(arguments[0]).startswith(str(out))):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    real = files._Target.write

    def write(self: files._Target, data: Any) -> int:
        half = memoryview(data).cast("B")[: memoryview(data).nbytes // 2]
        if left == 1:
            real(self, half)
            self.flush()
        note("write")
        return real(self, data)

    files._Target.write = write
    sys.addaudithook(note)
    train(chosen)


def facts(out: Path) -> dict[str, Any]:
    """What must not depend on kills. Older checkpoints may have given way to the weights."""
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    last = max((out / "checkpoint").glob("step-*"))
    named = [path.relative_to(out) for path in out.rglob("*")]
    kept = [path for path in named if path.parts[0] != "checkpoint" or path.parts[1:2] == (last.name,)]
    return {
        "files": sorted(map(str, [*kept, *(path for path in named if "/." in f"/{path}")])),
        "weights": (out / "model/model.safetensors").read_bytes(),
        "card": (out / "model/config.json").read_bytes(),
        "metrics": (out / "metrics.csv").read_bytes(),
        "log": [{key: value for key, value in line.items() if key not in TIMES} for line in log],
        "state": load_checkpoint(last),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def mounted(folder: Path, size: int) -> bool:
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        return subprocess.run(words, capture_output=True).returncode == 0
    return False


def main(data: str, scratch: Path, kills: int = 40, seed: int = 0) -> dict[str, Any]:
    scratch, draw = scratch.resolve(), random.Random(seed)
    whole = scratch / "whole"
    started = time.monotonic()
    assert os.waitpid(fork(lambda: train(settings(data, whole))), 0)[1] == 0
    seconds = time.monotonic() - started
    expected, sizes = facts(whole), [path.stat().st_size for path in whole.glob("checkpoint/*/state.pt")]
    room, disk = 4 * max(sizes) + SMALL_FILES, scratch / "disk"
    found: dict[str, Any] = {"kills": 0, "at writes": 0, "runs": 0, "different": [], "failed": 0}
    found["room"] = room if mounted(disk, room) else None
    out = disk / "run"
    try:
        while found["kills"] < kills or out.exists():
            last = found["kills"] >= kills
            if last:
                child = fork(lambda: train(settings(data, out)))
            elif found["kills"] % 2:
                count = draw.randint(1, 200)
                child = fork(partial(dies_at, count, out, settings(data, out)))
            else:
                child = fork(lambda: train(settings(data, out)))
                time.sleep(draw.uniform(0, seconds))
                os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if os.WIFSIGNALED(status):
                found["at writes"] += found["kills"] % 2
                found["kills"] += 1
            elif status:
                found["failed"] += 1
                break
            else:
                now = facts(out)
                found["different"] += [key for key in expected if not same(expected[key], now[key])]
                found["runs"] += 1
                shutil.rmtree(out)
    finally:
        if found["room"]:
            subprocess.run(["umount", str(disk)], check=True)
    return found | {"seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    data, scratch, *numbers = sys.argv[1:]
    torch.set_num_threads(1)
    print(json.dumps(main(data, Path(scratch), *map(int, numbers))))
