"""A model zoo for dense image prediction with feature-aligned pyramids.

The public names are imported on first use, so that listing models needs neither torch nor the network.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "_factory",
    "list_models": "_registry",
    "register_model": "_registry",
    "ModelSpec": "_spec",
    "DataSpec": "_spec",
    "WeightsSpec": "_spec",
    "Backbone": "backbones",
    "FPN": "necks",
    "FaPN": "necks",
    "deform_conv2d": "layers.deform_conv",
    "deform_conv_backend": "layers.deform_conv",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
