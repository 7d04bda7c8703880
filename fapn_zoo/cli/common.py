"""What several verbs share: their making, arguments that read alike, and the model they work with."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fapn_zoo.model import ZooModel

EMBEDDED = "perpixel_fapn_resnet18_slim_camvid"
MODEL = "name, hf-hub:..., or weights folder"

Verbs = argparse._SubParsersAction  # what argparse's add_subparsers returns


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int | None], text: str, **options: Any
) -> argparse.ArgumentParser:
    """A verb whose parsed arguments go to `run`, which returns the exit code; None is 0."""
    verb = verbs.add_parser(name, help=text, description=text, **options)
    verb.set_defaults(run=run)
    return verb


def add_device(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")


def add_reading(verb: argparse.ArgumentParser, default: str = "as the model was trained") -> None:
    text = f"stored value that is white in pictures deeper than 8 bits, such as 4095; default: {default}"
    verb.add_argument("--white-level", type=float, metavar="N", help=text)
    text = f"turn pictures by their EXIF orientation or not; default: {default}"
    verb.add_argument("--exif", choices=("apply", "ignore"), help=text)


def size(text: str) -> tuple[int, int]:
    """`512` or `512x1024` -> (height, width) in pixels; a type for argparse."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isdigit() and int(p) for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 512 or 512x1024 (height x width)")
    return int(parts[0]), int(parts[-1])


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
