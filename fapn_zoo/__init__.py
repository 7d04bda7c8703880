"""A model zoo for dense image prediction with feature-aligned pyramids.

The public names are imported on first use, so that listing models needs neither torch nor the network.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "create",
    "list_models": "zoo.registry",
    "register_model": "zoo.registry",
    "ModelSpec": "zoo.spec",
    "DataSpec": "zoo.spec",
    "WeightsSpec": "zoo.spec",
    "Backbone": "modules.backbones",
    "FPN": "modules.necks",
    "FaPN": "modules.necks",
    "deform_conv2d": "modules.deform_conv.conv",
    "deform_conv_backend": "modules.deform_conv.conv",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
