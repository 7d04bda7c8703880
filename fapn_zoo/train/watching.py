"""How a run can be watched: its curves as a picture, and the trackers of accelerate."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from fapn_zoo.runtime.files import read_text
from fapn_zoo.train.log import read_table
from fapn_zoo.train.settings import Settings
from fapn_zoo.visualize.plots import plot_curves, require_matplotlib

logger = logging.getLogger(__name__)

CURVES = "progress.png"


def draw_curves(out: Path) -> None:
    """OUT/progress.png of what log.jsonl and metrics.csv hold; without matplotlib that is said, and nothing drawn."""
    try:
        require_matplotlib()
    except ValueError as error:
        logger.info("no %s: %s", CURVES, error)
        return
    lines = [json.loads(line) for line in read_text(out / "log.jsonl").splitlines()]
    names = [name for name in (lines[-1] if lines else ()) if name not in ("step", "img_s", "data_wait")]
    losses = {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}
    rates = {"learning rate": losses.pop("lr", [])}
    plot_curves({"loss": losses, "score, %": read_table(out / "metrics.csv"), "": rates}, out / CURVES)


def check_tracker(name: str) -> None:
    """ValueError where the package of a tracker is not installed; accelerate itself would leave it out in silence."""
    if name and name not in {str(getattr(one, "value", one)) for one in get_available_trackers()}:
        raise ValueError(f"log_with={name} needs the package {name}: pip install {name}")


def start_tracker(accelerator: Accelerator, settings: Settings) -> None:
    """Begins the record of a run: TensorBoard's in OUT/tensorboard, those of services in their project fapn-zoo."""
    name = settings.log_with
    values = settings.to_dict()
    config = {k: v if isinstance(v, (bool, int, float, str)) else json.dumps(v) for k, v in values.items()}
    options: dict[str, Any] = {} if name == "tensorboard" else {name: {"name": Path(settings.out).resolve().name}}
    accelerator.init_trackers(name if name == "tensorboard" else "fapn-zoo", config=config, init_kwargs=options)
