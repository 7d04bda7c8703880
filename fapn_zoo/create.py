"""From a string to a model: the only place that resolves names, sources and keyword arguments."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from fapn_zoo.model import ZooModel, build
from fapn_zoo.weights import hub
from fapn_zoo.weights.class_rows import known_names, same_classes, same_names
from fapn_zoo.weights.folder import LoadReport, load_weights, read_spec
from fapn_zoo.zoo.parts import NECKS
from fapn_zoo.zoo.registry import resolve
from fapn_zoo.zoo.spec import FROM_DATA, DataSpec, ModelSpec

logger = logging.getLogger(__name__)

STRIDE = "backbone_stride_in_1x1"


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    pretrained_backbone: bool = False,
    backbone_weights: str | Path | None = None,
    backbone: str | None = None,
    neck: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    labels: Sequence[str] | None = None,
    things: Sequence[int] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    data: DataSpec | None = None,
    **kwargs: Any,
) -> ZooModel:
    """Builds a model: in evaluation mode where its weights are loaded, in training mode where they are new.

    So a model with weights is ready to predict, as those of `transformers` are (timm and torchvision leave theirs in
    training mode, in which batch norms change with every image); `model.train()` before training it further.

    Args:
        name: a listed name, with or without `.tag`; an architecture (`"maskformer_fapn"` with `backbone=`, or
            `"perpixel_fapn_convnextv2_tiny"`); `"hf-hub:owner/name@revision"`; or `"local-dir:path"`.
        pretrained: load the weights of the name, the Hub repository or the folder.
        pretrained_backbone: start the backbone from its ImageNet weights (through timm). Not with `pretrained`. Images
            are normalised as those want it unless `data` is given, and strides stand where timm has them.
        backbone_weights: the same from a file on this machine, see `convert.backbone_weights.load_backbone`.
        backbone, neck: replace those of the name; a short name, or any pyramid or plain ViT of timm.
        num_classes: replaces the label set; pretrained weights keep all but the classifier.
        in_chans: channels of the input; pretrained weights of the first convolution are adapted as timm does.
        labels: names of new classes; of weights that know some of them (but for case and signs), their rows are kept.
        things: ids of the countable classes among `num_classes` new ones, for heads that tell them from stuff.
        checkpoint_path: a safetensors file or weights folder that fits exactly; its mean and std replace the name's.
        cache_dir: of downloads; None is the Hub client's own. data: replaces preprocessing and labels.
        kwargs: arguments of the parts, prefixed, that win over those of the name: `neck_out_channels=128`.

    Returns:
        A model, with `load_report` where `pretrained` or `checkpoint_path` loaded its weights, else in training mode.

    Raises:
        ValueError: unknown names, tags, keyword arguments or sources (with the nearest known ones), or weights that do
            not fit. FileNotFoundError: a folder or file that is not there.
    """
    imagenet = _from_imagenet(pretrained, pretrained_backbone, backbone_weights)
    spec, folder, in_cache = _resolve(name, pretrained, cache_dir)
    replaced = {"backbone": backbone, "neck": neck, "num_classes": num_classes, "in_chans": in_chans}
    wanted = _override(_without_stride(spec) if imagenet else spec, replaced, labels, things, data, kwargs)
    saved, named = read_spec(folder) if pretrained else None, labels is not None
    whole = saved is not None and _fits(saved, wanted, named)  # then nothing is initialised first
    model = build(wanted, pretrained_backbone=pretrained_backbone, empty=whole, cache_dir=cache_dir)
    if imagenet:
        _start_backbone(model, backbone_weights, data)
    if saved is not None:
        model.load_report = load_weights(model, folder, saved=saved, by_name=named, share=in_cache)
    if checkpoint_path is not None:
        model.load_report = _load_checkpoint(model, checkpoint_path, data, named)
    return model.train(model.load_report is None)


def spec_of(name: str, cache_dir: str | Path | None = None) -> ModelSpec:
    """The description of what `create_model` makes of a name, without its weights; errors as there."""
    return _resolve(name, False, cache_dir)[0]


def _from_imagenet(pretrained: bool, pretrained_backbone: bool, backbone_weights: str | Path | None) -> bool:
    """Whether only the backbone starts from weights; ValueError for two sources of them."""
    given = {"pretrained=True": pretrained, "pretrained_backbone=True": pretrained_backbone}
    given["backbone_weights="] = backbone_weights is not None
    if len(names := [name for name, value in given.items() if value]) > 1:
        raise ValueError(f"{names[0]} brings backbone weights already; choose it or {' or '.join(names[1:])}")
    return bool(names) and not pretrained


def _without_stride(spec: ModelSpec) -> ModelSpec:
    """A stride in the 1x1 is that of Caffe's weights."""
    return dataclasses.replace(spec, args={key: value for key, value in spec.args.items() if key != STRIDE})


def _resolve(name: str, pretrained: bool, cache_dir: str | Path | None) -> tuple[ModelSpec, Path | None, bool]:
    """The description; the weights folder, where the name or `pretrained` leads to one; whether that is in a cache.

    Nobody writes to files in a cache, so that weights may stay in them.
    """
    scheme, colon, rest = name.partition(":")
    if colon and scheme == "local-dir":
        return read_spec(Path(rest)), Path(rest), False
    if colon and scheme == "hf-hub":
        folder = hub.download(rest, cache_dir=cache_dir, weights=pretrained)
        return read_spec(folder), folder, True
    if colon or "/" in name or "\\" in name:
        raise ValueError(
            f"{name!r} is no model name; folders are given as 'local-dir:PATH', Hub repositories as "
            "'hf-hub:OWNER/NAME' or 'hf-hub:OWNER/NAME@REVISION'"
        )
    spec, weights = resolve(name, weights=pretrained)
    if not pretrained:
        return spec, None, False
    if weights.source == "embedded":
        return spec, Path(__file__).parent / "weights" / "embedded" / weights.location, False
    if weights.source == "official":
        from fapn_zoo.convert import official

        return spec, official.fetch(spec, weights, cache_dir), True
    repository = f"{weights.location}@{weights.revision}" if weights.revision else weights.location
    return spec, hub.download(repository, cache_dir=cache_dir, sha256=weights.sha256), True


def _fits(saved: ModelSpec, wanted: ModelSpec, by_name: bool) -> bool:
    """Whether a model has the very tensors that were saved, as far as classes and bands make them."""
    shapes = [(spec.num_classes, spec.in_chans, len(spec.data.things)) for spec in (saved, wanted)]
    return shapes[0] == shapes[1] and same_classes(saved, wanted, by_name)


def _override(
    spec: ModelSpec,
    replaced: Mapping,
    labels: Sequence[str] | None,
    things: Sequence[int] | None,
    data: DataSpec | None,
    kwargs: Mapping,
) -> ModelSpec:
    if labels is not None and replaced["num_classes"] is None:
        replaced = {**replaced, "num_classes": len(labels)}
    changes = {key: value for key, value in replaced.items() if value is not None}
    if (neck := changes.get("neck", spec.neck)) not in NECKS:
        raise ValueError(f"unknown neck {neck!r}; expected one of {', '.join(NECKS)}")
    for key in ("num_classes", "in_chans"):
        value = changes.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r}; expected a whole number of 1 or more")
    args = dict(spec.args)
    if changes.get("backbone", spec.backbone) != spec.backbone:
        # What a description says of its own backbone (frozen norms, windows) need not fit another one.
        args = {key: value for key, value in args.items() if not key.startswith("backbone_")}
    changes |= {"args": args | dict(kwargs), "data": data or spec.data}
    if changes.get("num_classes", spec.num_classes) != spec.num_classes:
        changes["label_set"] = None
        if data is None:
            nothing = dict.fromkeys(("labels", "palette", "things", *FROM_DATA), ())
            changes["data"] = dataclasses.replace(spec.data, **nothing)
    elif spec.num_classes is None and data is not None and data.labels:
        changes["num_classes"] = len(data.labels)
    if labels is not None:
        changes |= _named(changes["data"], changes["num_classes"], labels)
    if things is not None:
        changes["data"] = dataclasses.replace(changes["data"], things=tuple(things))
    spec = dataclasses.replace(spec, **changes)
    if spec.num_classes is not None and spec.data.labels and len(spec.data.labels) != spec.num_classes:
        raise ValueError(f"num_classes={spec.num_classes}, but data has {len(spec.data.labels)} labels")
    return _normalised_by(spec, spec.data.mean, spec.data.std, spec.data.channel_order)


def _start_backbone(model: ZooModel, weights: str | Path | None, data: DataSpec | None) -> None:
    """Images as the ImageNet weights that timm describes want them (RGB, mean and std of 0..1), and those of a file."""
    if data is None:
        described = model.backbone.body.pretrained_cfg
        mean, std = ([round(255 * value, 4) for value in described[name]] for name in ("mean", "std"))
        model.spec = _normalised_by(model.spec, mean, std, "rgb")
    if weights is not None:
        from fapn_zoo.convert.backbone_weights import load_backbone

        load_backbone(model, weights)


def _named(data: DataSpec, num_classes: int, labels: Sequence[str]) -> dict[str, Any]:
    """What changes where classes get names: of a label set nothing else holds, unless they are its own."""
    if isinstance(labels, str) or len({*labels}) < len(labels):
        raise ValueError(f"labels={labels!r}; expected a list of different names")
    if num_classes != len(labels):
        raise ValueError(f"num_classes={num_classes}, but there are {len(labels)} labels")
    if tuple(labels) == data.labels:
        return {}
    names = {"labels": tuple(labels), "palette": (), "category_ids": (), "things": ()}
    return {"data": dataclasses.replace(data, **names), "label_set": None}


def _load_checkpoint(model: ZooModel, path: str | Path, data: DataSpec | None, by_name: bool) -> LoadReport:
    """Reads weights, and from their folder what they depend on and no tensor shows."""
    saved = read_spec(path) if Path(path).is_dir() else None
    shared = by_name and saved is not None and same_names(known_names(saved), known_names(model.spec))
    report = load_weights(model, path, saved=saved if shared else None, by_name=True)
    if saved is not None:
        if bool(model.spec.args.get(STRIDE)) != bool(its := saved.args.get(STRIDE, False)):
            raise ValueError(f"{path} was trained with {STRIDE}={its}, which no tensor shows; pass it along")
        if data is None:
            model.spec = _normalised_by(model.spec, saved.data.mean, saved.data.std, saved.data.channel_order)
    return report


def _normalised_by(spec: ModelSpec, mean: Sequence[float], std: Sequence[float], order: str) -> ModelSpec:
    """Mean and std are repeated where the image has another number of channels than they were given for."""
    mean, std = (tuple(islice(cycle(values), spec.in_chans)) for values in (mean, std))
    return dataclasses.replace(spec, data=dataclasses.replace(spec.data, mean=mean, std=std, channel_order=order))
