"""What is trained: a model, its loss, and how a batch of pictures and labels becomes the input of both."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from fapn_zoo.train.settings import Settings


class SemanticTask:
    """A semantic segmentation model with its loss.

    Args:
        model: module from normalised (N, C, H, W) float images to a raw output; `model.data` is its DataSpec.
        loss: module `(output, targets, normalizer=None) -> dict of scalars` with the total under "loss". Its terms are
            sums divided by `normalizer`; an optional method `count(targets) -> Tensor` says what one batch adds to
            it. Without the method the count is the number of labelled pixels.
        channels_last: memory format of the images.
    """

    def __init__(self, model: nn.Module, loss: nn.Module, channels_last: bool = False) -> None:
        self.model = model
        self.loss = loss
        self.data = model.data
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._constants: tuple[Tensor, Tensor] | None = None

    def inputs(self, images: Tensor, labels: Tensor, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """Moves a batch to the device and normalises the images.

        Args:
            images: (N, 3, H, W) float RGB, 0..255.
            labels: (N, H, W) int64, class ids or the ignore index.

        Returns:
            images as the model wants them and the targets {"labels": (N, H, W) int64}.
        """
        if self._constants is None or self._constants[0].device != device:
            mean = torch.tensor(self.data.mean, device=device).view(1, -1, 1, 1)
            std = torch.tensor(self.data.std, device=device).view(1, -1, 1, 1)
            self._constants = (mean, 1 / std)
        images = images.to(device, torch.float32, non_blocking=True, memory_format=self.memory_format)
        if self.data.channel_order == "bgr":
            images = images.flip(1)
        mean, scale = self._constants
        return (images - mean).mul_(scale), {"labels": labels.to(device, non_blocking=True)}

    def count(self, targets: dict[str, Tensor]) -> Tensor:
        """What these targets add to the loss's normalizer: a float64 tensor, summed over micro-batches and ranks."""
        if hasattr(self.loss, "count"):
            return torch.as_tensor(self.loss.count(targets), dtype=torch.float64)
        return (targets["labels"] != self.data.ignore_index).sum().double()

    def losses(
        self, model: nn.Module, images: Tensor, targets: dict[str, Tensor], normalizer: Tensor
    ) -> dict[str, Tensor]:
        """One forward pass: a dict of scalar losses, the total under "loss"."""
        return self.loss(model(images), targets, normalizer=normalizer)


def build_task(settings: Settings, labels: Any) -> SemanticTask:
    """Creates the model of the settings for the classes of a LabelMap, and the loss that belongs to it.

    Names, colours and the ignore index go into the model's DataSpec, from where they travel with the weights.

    Raises:
        ValueError: `num_classes` or the number of channels contradicts the data, or `freeze` names no module.
    """
    from fapn_zoo import create_model
    from fapn_zoo.modules.losses import build_loss

    wanted = settings.num_classes
    if wanted is not None and wanted != labels.num_classes:
        raise ValueError(f"num_classes={wanted}, but the data has {labels.num_classes} classes")
    arguments = {"backbone": settings.backbone, "neck": settings.neck, "checkpoint_path": settings.checkpoint_path}
    model = create_model(
        settings.model,
        pretrained=settings.pretrained,
        pretrained_backbone=settings.pretrained_backbone,
        num_classes=labels.num_classes,
        **{k: v for k, v in arguments.items() if v is not None},
        **settings.model_args,
    )
    if model.spec.in_chans != 3:
        raise ValueError(f"the data is RGB, but {settings.model} takes {model.spec.in_chans} channels")
    set_labels(model, labels, settings.test_size)
    freeze(model, settings.freeze)
    return SemanticTask(model, build_loss(model, settings.class_weights), settings.channels_last)


def build_transform(settings: Settings, data: Any) -> Any:
    """The random change of training samples; padding is the model's mean colour, which normalises to zero."""
    from fapn_zoo.data.transforms import TrainTransform

    jitter = settings.colour_jitter
    return TrainTransform(
        crop_size=settings.crop,
        scale=settings.scale,
        flip=settings.flip,
        brightness=0.3 * jitter,
        contrast=0.3 * jitter,
        saturation=0.3 * jitter,
        hue=0.03 * jitter,
        ignore_index=data.ignore_index,
        fill=tuple(data.mean[::-1] if data.channel_order == "bgr" else data.mean),
        rare_classes=settings.rare_classes,
        rare_prob=settings.rare_prob,
    )


def set_labels(model: nn.Module, labels: Any, test_size: int | None = None) -> None:
    """Writes the classes of a LabelMap (and the test size, when given) into the model's spec."""
    changes: dict[str, Any] = {
        "labels": tuple(labels.names),
        "palette": tuple(tuple(colour) for colour in labels.palette),
        "ignore_index": labels.ignore_index,
        "things": (),
    }
    if test_size is not None:
        changes.update(test_size=test_size or None)
    data = dataclasses.replace(model.spec.data, **changes)
    label_set = model.spec.label_set if data.labels == model.spec.data.labels else None
    model.spec = dataclasses.replace(model.spec, data=data, num_classes=labels.num_classes, label_set=label_set)


def freeze(model: nn.Module, prefixes: str) -> None:
    """Stops gradients below the modules named in `prefixes` (joined with ","); ValueError for an unknown one."""
    modules = dict(model.named_modules())
    for name in filter(None, (p.strip() for p in prefixes.split(","))):
        if name not in modules:
            children = ", ".join(n for n, _ in model.named_children())
            raise ValueError(f"freeze={name!r} is no module of the model; its parts are {children}")
        modules[name].requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Training mode, except for modules without a trainable parameter: frozen norms keep their statistics."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
