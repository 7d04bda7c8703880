"""Generated street scenes as a data set."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from fapn_zoo.data import scenes
from fapn_zoo.data.images import with_channels
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import SEGMENTS, DataError, Objects, Sample

SCENE_SIDES = (32, 4096)
SCENE_GRAMMAR = (
    "scenes:N or scenes:N@HxW, N >= 1 scenes of height H and width W, "
    f"each {SCENE_SIDES[0]}..{SCENE_SIDES[1]} pixels, such as scenes:40 or scenes:40@180x240"
)
_SCENE_SPLITS = {"train": 0, "val": 1, "test": 2}
_SCENES_PER_SPLIT = 100_000_000  # seeds of different splits never meet


class ScenesDataset:
    """Generated street scenes, made when they are asked for: `scenes:N` (360x480) or `scenes:N@HxW`.

    Scene i of a split is always the same; train, val and test never share a scene. Cars, pedestrians and bicyclists
    are things, never crowds.
    """

    holds = SEGMENTS

    @classmethod
    def splits(cls, spec: str) -> list[str]:
        """All that there are."""
        return list(_SCENE_SPLITS)

    def __init__(self, spec: str, split: str, num_classes: int | None = None, reading: Reading | None = None) -> None:
        self.reading = (reading or Reading()).plain()
        spec = spec.strip()
        match = re.fullmatch(r"scenes:(\d{1,9})(?:@(\d{1,5})x(\d{1,5}))?", spec)
        count = int(match[1]) if match else 0
        low, high = SCENE_SIDES
        self._size = tuple(int(v) for v in match.groups()[1:]) if match and match[2] else (360, 480)
        if not 1 <= count <= _SCENES_PER_SPLIT or not all(low <= v <= high for v in self._size):
            raise DataError(f"cannot understand {spec!r}; write {SCENE_GRAMMAR}")
        if split not in _SCENE_SPLITS:
            raise FileNotFoundError(f"no split {split!r} in {spec}; it has {', '.join(_SCENE_SPLITS)}")
        self.name, self.split, self._count = spec, split, count
        self.labels = LabelMap(tuple(scenes.CLASSES), scenes.PALETTE, 255, tuple(scenes.THINGS))
        if num_classes is not None and num_classes != self.labels.num_classes:
            raise DataError(f"num_classes is {num_classes}, but {spec} has {self.labels.num_classes} classes")

    def __len__(self) -> int:
        return self._count

    def seed(self, index: int) -> int:
        """The seed that makes scene `index` of this split."""
        if not 0 <= index < self._count:
            raise IndexError(f"scene {index} of {self._count}")
        return _SCENE_SPLITS[self.split] * _SCENES_PER_SPLIT + index

    def size(self, index: int) -> tuple[int, int]:
        return self._size

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def sample(self, index: int) -> Sample:
        seed = self.seed(index)
        scene = scenes.generate_scene(seed, self.size(index))
        classes = np.array([segment["category_id"] for segment in scene.segments], np.int64)
        objects = Objects(scene.panoptic, classes, np.zeros(len(classes), bool))
        image = torch.from_numpy(scene.image).permute(2, 0, 1)
        image = with_channels(image, self.reading.in_chans, self.name)
        return Sample(image, f"scene_{seed:09d}", scene.semantic, objects)
