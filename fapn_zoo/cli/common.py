"""What several verbs share: types of their arguments, and the model they work with."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fapn_zoo.model import ZooModel

EMBEDDED = "perpixel_fapn_resnet18_slim_camvid"
NUCLEI = "mask_rcnn_fpn_efficientnet_lite0_nuclei"
BLOOD = "faster_rcnn_fpn_efficientnet_lite0_blood_cells"


def size(text: str) -> tuple[int, int]:
    """`512` or `512x1024` -> (height, width) in pixels; a type for argparse."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and int(p) for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 512 or 512x1024 (height x width)")
    return int(parts[0]), int(parts[-1])


def scales(text: str) -> str | list[float]:
    """`official`, or `0.5,1,1.5` -> numbers, whole ones as int; a type for argparse."""
    if text == "official":
        return text
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; write official, or numbers such as 0.5,1,1.5") from None
    return [int(number) if number.is_integer() else number for number in numbers]


def load_model(name: str, device: str | None) -> ZooModel:
    """A model with its weights, on the device. A folder that exists may be given without `local-dir:`."""
    from fapn_zoo import create_model
    from fapn_zoo.runtime.device import find_device

    if Path(name).is_dir():
        name = f"local-dir:{name}"
    found = find_device(device)
    return create_model(name, pretrained=True).to(found)


def speaks() -> bool:
    """False in all processes but one of those that torchrun started: one voice is enough."""
    return os.environ.get("RANK", "0") == "0"
