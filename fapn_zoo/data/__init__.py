"""Images with their labels: where they come from, how they are checked, and how they are fed to training.

The names below load on first use, so that reading class names (`fapn_zoo.data.labels`) never imports torch.
"""

from __future__ import annotations

import importlib

_HOMES = {"LabelMap": "labels", "DataError": "sample", "Objects": "sample", "Sample": "sample"}
_HOMES |= {"open_dataset": "sources"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
