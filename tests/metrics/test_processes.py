"""Two processes that share the images count and report what one process does, to the last digit."""

from __future__ import annotations

import os
import subprocess
import sys
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
    """What every metric says after each process has taken every world-th image."""
    metrics = [ConfusionMatrix(11), BoundaryBands(11), BoundaryIoU(11), BoundaryFScore(11)]
    panoptic, detection = PanopticQuality(SCENE_CATEGORIES), AveragePrecision(11)
    for i in range(rank, IMAGES, world):
        for metric in metrics:
            metric.update(*scene_pair(i))
        panoptic.update(*panoptic_pair(i))
        detection.update(*detection_pair(i), i)
    return "\n".join(repr(metric.reduce().compute()) for metric in [*metrics, panoptic, detection])


def test_two_processes_report_as_one(tmp_path: Path):
    command = [sys.executable, __file__, str(tmp_path)]
    settings = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}}
    running = [subprocess.Popen([*command, str(rank)], **settings) for rank in range(2)]
    said = [process.communicate(timeout=120)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1] == reports(0, 1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    print(reports(rank, 2))
    dist.destroy_process_group()
