"""A tiny data set on disk and settings of a net that learns it in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fapn_zoo
from fapn_zoo.train.settings import Settings

COLOURS = np.array([(40, 90, 200), (30, 140, 40), (210, 180, 60)])


def write_pictures(folder: Path, count: int, seed: int, size: tuple[int, int] = (48, 64)) -> None:
    """Noisy pictures of two rectangles on a ground; the classes have their own colours, a border is unlabelled."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        labels = np.zeros(size, np.uint8)
        for k in (1, 2):
            y, x = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 24)
            labels[y : y + rng.integers(10, 20), x : x + rng.integers(12, 24)] = k
        image = (COLOURS[labels] + rng.normal(0, 25, (*size, 3))).clip(0, 255).astype(np.uint8)
        labels[:2] = 255
        Image.fromarray(image).save(folder / "images" / f"{i:03d}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{i:03d}.png")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_pictures(root / "train", 12, seed=1)
    write_pictures(root / "val", 5, seed=2)
    (root / "classes.json").write_text(json.dumps({"names": ["ground", "tree", "sign"], "ignore_index": 255}))
    return root


@pytest.fixture
def tiny(pictures: Path, tmp_path: Path) -> Settings:
    """perpixel_fpn on timm's smallest test backbone: about 20 ms a step."""
    return Settings(
        model="perpixel_fpn",
        backbone="test_efficientnet",
        model_args={"neck_out_channels": 16, "head_mask_channels": 16, "head_dropout": 0.2},
        data=str(pictures),
        crop=(32, 48),
        steps=8,
        batch_size=4,
        lr=3e-3,
        log_every=1,
        checkpoint_every=0,
        curves=False,
        threads=1,
        out=str(tmp_path / "run"),
    )


@pytest.fixture(autouse=True)
def one_thread():
    """Sums must not be split differently from one run to the next."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def environment() -> dict[str, str]:
    """For processes that import this package and run on one thread."""
    root = Path(fapn_zoo.__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def start(environment: dict[str, str]) -> Callable[..., subprocess.Popen]:
    """Starts a training in a process of its own, or on several: `start(settings, processes=2)`; `before`: code."""
    running: list[subprocess.Popen] = []
    code = (
        "import json, sys\n"
        "from fapn_zoo.train.loop import train\n"
        "from fapn_zoo.train.settings import Settings\n"
        "values = json.loads(sys.argv[1])\n"
        "values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}\n"
        "train(Settings(**values))\n"
    )

    def run(settings: Settings, processes: int = 1, before: str = "") -> subprocess.Popen:
        script = Path(settings.out).with_suffix(".py")
        script.write_text(before + code)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words = [sys.executable, *(launcher if processes > 1 else []), str(script), json.dumps(settings.to_dict())]
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.wait()
        process.stderr.close()
