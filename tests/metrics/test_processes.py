"""Two processes that share the images count and report what one process does, to the last digit."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from toys.detection_references import detection_pair
from toys.metric_references import SCENE_CATEGORIES, panoptic_pair, scene_pair

from fapn_zoo.metrics import (
    AveragePrecision,
    BoundaryBands,
    BoundaryFScore,
    BoundaryIoU,
    ConfusionMatrix,
    PanopticQuality,
)

pytestmark = pytest.mark.unit

IMAGES = 5


def reports(rank: int, world: int) -> str:
    """What every metric says of all images, of which this process has taken every world-th."""
    metrics = [ConfusionMatrix(11), BoundaryBands(11), BoundaryIoU(11), BoundaryFScore(11)]
    panoptic, detection = PanopticQuality(SCENE_CATEGORIES), AveragePrecision(11)
    for i in range(rank, IMAGES, world):
        for metric in metrics:
            metric.update(*scene_pair(i))
        panoptic.update(*panoptic_pair(i))
        detection.update(*detection_pair(i), i)
    mine = [*metrics, panoptic, detection]
    everyones = [mine] * world
    if world > 1:
        dist.all_gather_object(everyones, mine)
    totals, *others = everyones
    for parts in others:
        for total, part in zip(totals, parts, strict=True):
            total.merge(part)
    return "\n".join(repr(total.compute()) for total in totals)


def meet(folder: str, rank: int) -> str:
    """The reports of one process of two."""
    where = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=100)}
    dist.init_process_group("gloo", rank=rank, world_size=2, **where)
    try:
        return reports(rank, 2)
    finally:
        dist.destroy_process_group()


def test_two_processes_report_as_one(tmp_path: Path):
    command = [sys.executable, __file__, str(tmp_path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as other:
        alone = reports(0, 1)
        here = meet(str(tmp_path), 0)
        there = other.communicate(timeout=100)[0].strip()
    assert other.returncode == 0 and here == there == alone


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(meet(sys.argv[1], 1))
