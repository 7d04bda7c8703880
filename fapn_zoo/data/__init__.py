"""Images with their labels: where they come from, how they are checked, and how they are fed to training.

The names below load on first use, so that reading class names (`fapn_zoo.data.labels`) never imports torch.
"""

from __future__ import annotations

import importlib

_HOMES = {
    "LabelMap": "labels", "default_palette": "labels",
    "DataError": "sample", "Dataset": "sample", "Objects": "sample", "Sample": "sample",
    "FolderDataset": "folders", "ScenesDataset": "generated", "open_dataset": "sources",
    "CocoPanoptic": "panoptic_sources", "JoinedDataset": "sources",
    "TrainTransform": "transforms",
    "StepBatches": "loader", "train_batches": "loader",
    "CheckReport": "check", "check_data": "check",
    "generate_scene": "scenes",
}  # fmt: skip

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
