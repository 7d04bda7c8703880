"""From settings to everything a run needs: data, model, loss, and what joins them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fapn_zoo.create import create_model, spec_of
from fapn_zoo.data.check_pictures import warn_of_turned
from fapn_zoo.data.classes import check_classes
from fapn_zoo.data.labels import LabelMap
from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.data.sample import Dataset, Sample, check_holds
from fapn_zoo.data.sources import open_dataset
from fapn_zoo.data.supervision import check_supervision, pixel_shares
from fapn_zoo.data.transforms import TrainTransform
from fapn_zoo.modules.losses import Loss, PerPixelLoss
from fapn_zoo.predict.inputs import network_input
from fapn_zoo.runtime.processes import processes
from fapn_zoo.runtime.tables import some
from fapn_zoo.tasks import task_for
from fapn_zoo.tasks.protocol import Task
from fapn_zoo.tasks.targets import Batch, collate
from fapn_zoo.train.settings import Settings
from fapn_zoo.weights.finite import check_finite
from fapn_zoo.zoo.parts import HEADS, load_part
from fapn_zoo.zoo.spec import FROM_DATA, DataSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        task: what the model is trained for, and its own from then on.
        val: the validation set; None = the run is never evaluated.
        transform, collate: from a sample of `dataset` to a batch.
        options: what the loss was made with.
    """

    model: nn.Module
    loss: Loss
    task: Task
    dataset: Dataset
    val: Dataset | None
    transform: TrainTransform
    collate: Callable[[Sequence[Sample]], Batch]
    options: dict[str, Any] = field(default_factory=dict)


def prepare(settings: Settings) -> Parts:
    """Opens the data and makes the model of the settings for its classes.

    ValueError or FileNotFoundError where settings, data and model do not go together.
    """
    s = settings
    if not s.data:
        raise ValueError("data= is missing: a folder, scenes:N, or several joined with ','")
    reading = Reading(s.white_level, s.exif, s.in_chans or s.model_args.get("in_chans", 3))
    task = task_for(spec_of(s.model), s.task)
    dataset = open_dataset(s.data, s.train_split, task.needs, num_classes=s.num_classes, reading=reading)
    model = build_model(s, dataset.labels, dataset.reading)
    if model.spec.in_chans != reading.in_chans:  # nobody asked for another number than the model's own
        reading = reading.replace(in_chans=model.spec.in_chans)
        dataset = open_dataset(s.data, s.train_split, task.needs, num_classes=s.num_classes, reading=reading)
    val = _validation_set(s, task.needs, reading.replace(otherwise=dataset.reading))
    warn_of_turned(*filter(None, (dataset, val)))
    data = model.spec.data
    model.spec = dataclasses.replace(model.spec, task=task.name)
    for opened in (dataset, val):
        if opened is not None:
            check_holds(opened, task.needs, f"task {task.name!r}")
    _check_rare_classes(s, dataset.labels)
    if val is None and (s.patience or s.best):
        raise ValueError(f"patience={s.patience} and best={s.best} go by evaluations, and there is no validation set")
    if val is not None:
        check_classes(model, val)  # now, not after a day of training
    check_supervision(dataset, val, task.needs)
    if not (path := HEADS[model.spec.head].loss):
        raise ValueError(f"a {model.spec.head} head cannot be trained yet: it has no loss")
    kind = load_part(path)
    options = _loss_options(s, kind, dataset)
    joined = partial(collate, task=task, labels=dataset.labels, divisor=data.size_divisor)
    return Parts(model, kind.of(model, **options), task, dataset, val, _transform(s, data, task), joined, options)


def _loss_options(settings: Settings, kind: type[Loss], dataset: Dataset) -> dict[str, Any]:
    """What the settings say of the loss, if not the usual; `class_weights=auto` are counted in the data."""
    s, options = settings, {}
    if s.loss != "ce":
        options["loss"] = s.loss
    if s.class_weights:
        options["class_weights"] = s.class_weights
    if s.class_weights == "auto" and issubclass(kind, PerPixelLoss):
        options["class_weights"] = tuple(round(1 / math.log(1.02 + p), 4) for p in pixel_shares(dataset))  # ENet
        if processes().main:
            logger.info("class_weights=auto: %s", ",".join(map(str, options["class_weights"])))
    return options


def build_model(settings: Settings, labels: LabelMap, reading: Reading) -> nn.Module:
    """The model of the settings for the classes of the data, which it takes into its DataSpec with how it is read.

    Raises:
        ValueError: `num_classes` contradicts the data, `freeze` names no module, or loaded weights are not finite.
    """
    s = settings
    if s.num_classes is not None and s.num_classes != labels.num_classes:
        raise ValueError(f"num_classes={s.num_classes}, but the data has {labels.num_classes} classes")
    arguments = {"backbone": s.backbone, "neck": s.neck, "checkpoint_path": s.checkpoint_path}
    arguments |= {"pretrained": s.pretrained, "pretrained_backbone": s.pretrained_backbone, "in_chans": s.in_chans}
    arguments["backbone_weights"] = s.backbone_weights
    given = {name: value for name, value in arguments.items() if value is not None}
    classes = {"num_classes": labels.num_classes, "labels": labels.names, "things": labels.things}
    model = create_model(s.model, **classes, **(s.model_args | given))
    if model.load_report is not None:
        source = s.checkpoint_path or s.model
        check_finite(model.state_dict().items(), f"training cannot start from {source}: its weights")
        logger.info("starting from %s: %s", source, model.load_report)
    data = {"labels": labels.names, "palette": labels.palette, "ignore_index": labels.ignore_index}
    data |= {"white_level": reading.white_level, "exif": reading.exif or "apply"}
    data |= {key: getattr(labels, key) for key in FROM_DATA}
    if s.test_size is not None:
        data["test_size"] = s.test_size or None
    data = dataclasses.replace(model.spec.data, things=labels.things, **data)
    label_set = model.spec.label_set if data.labels == model.spec.data.labels else None
    model.spec = dataclasses.replace(model.spec, data=data, num_classes=labels.num_classes, label_set=label_set)
    modules = dict(model.named_modules())
    for name in sorted(filter(None, (part.strip() for part in s.freeze.split(",")))):
        if name not in modules:
            children = ", ".join(n for n, _ in model.named_children())
            raise ValueError(f"freeze={name!r} is no module of the model; its parts are {children}")
        modules[name].requires_grad_(False)
        pyramid = getattr(modules[name], "pyramid", None)
        if isinstance(pyramid, nn.Module):  # a plain ViT's has no weights to keep
            pyramid.requires_grad_(True)
    return model


def _check_rare_classes(settings: Settings, labels: LabelMap) -> None:
    """ValueError for ids that no pixel has, of which a crop could be put on none; a half of the pair alone is told."""
    bad = [i for i in settings.rare_classes if i >= labels.num_classes or i == labels.ignore_index]
    if bad:
        names = some(f"{i} {name}" for i, name in enumerate(labels.names) if i != labels.ignore_index)
        raise ValueError(f"rare_classes={','.join(map(str, bad))}: the data has no such class; it has {names}")
    if bool(settings.rare_classes) != bool(settings.rare_prob) and processes().main:
        given, lacks = ("rare_classes", "rare_prob") if settings.rare_classes else ("rare_prob", "rare_classes")
        logger.warning("%s does nothing without %s: set both", given, lacks)


def _validation_set(settings: Settings, needs: Collection[str], reading: Reading) -> Dataset | None:
    if settings.val_data == "none":
        return None
    options = {"num_classes": settings.num_classes, "reading": reading}
    try:
        return open_dataset(settings.val_data or settings.data, settings.val_split, needs, **options)
    except FileNotFoundError as error:
        if settings.val_data:
            raise
        logger.warning("no evaluation: %s", error)
        return None


def _transform(settings: Settings, data: DataSpec, task: Task) -> TrainTransform:
    """The random change of training samples; padding is the model's mean colour, which normalises to zero, or theirs.

    ValueError where crops are to depend on labels that the task has not.
    """
    s, jitter = settings, settings.colour_jitter
    colours = {"brightness": 0.3 * jitter, "contrast": 0.3 * jitter, "saturation": 0.3 * jitter, "hue": 0.03 * jitter}
    fill = tuple(data.mean[::-1] if data.channel_order == "bgr" and len(data.mean) == 3 else data.mean)
    fill = fill if s.pad_value is None else (s.pad_value,) * len(fill)
    if s.crop_category_max < 1 and "labels" not in task.needs:
        raise ValueError(f"crop_category_max={s.crop_category_max} needs label maps, which task {task.name!r} has not")
    rare = {"rare_classes": s.rare_classes, "rare_prob": s.rare_prob, "category_max": s.crop_category_max}
    sides = {"short_sides": s.short_sides, "max_side": s.max_side, "needs": task.needs}
    changes = colours | rare | sides
    return TrainTransform(s.crop, s.scale, s.flip, **changes, ignore_index=data.ignore_index, fill=fill)


def train_mode(model: nn.Module) -> None:
    """Training mode, except for modules without a trainable parameter: frozen norms keep their statistics."""
    model.train()
    for module in model.modules():
        trained = [parameter.requires_grad for parameter in module.parameters()]
        if trained and not any(trained):
            module.eval()


def anneal(model: nn.Module, done: float) -> None:
    """Tells a head that changes in the course of a training (`EoMTHead.anneal`) how much of it is over, 0..1."""
    if change := getattr(model.head, "anneal", None):
        change(done)


def part_losses(
    model: nn.Module, data: DataSpec, loss: Loss, part: Batch, totals: Mapping[str, Tensor], layout: torch.memory_format
) -> dict[str, Tensor]:
    """The losses of a micro-batch, their shares of what `totals` count. `model` may stand under DDP or compile."""
    options = {"memory_format": layout, "training": True, "size": part.images.shape[-2:]}
    images = network_input(data, part.pixels(), part.images.device, torch.float32, **options)
    return loss(model(images, part.sizes, part.targets), part.targets, totals)
