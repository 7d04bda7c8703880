"""The official trainings as settings: one table per family, asked for as `official/MODEL` or `official/MODEL.3x`.

Numbers are those of the configs of detectron2, PointRend, PanopticFCN and MaskFormer with FaPN (FACTS sections 2 to 4).
What differs: the R-CNN family began with MSRA's ResNets, which timm does not have, so theirs are torchvision's, with
images and strides as those want them; colours change by this package's jitter; batches of several processes are padded
to one size.
"""

from __future__ import annotations

from typing import Any

from fapn_zoo.zoo.registry import get_spec, list_models

PREFIX = "official/"
_ONE = {"steps": 90_000, "lr_steps": (2 / 3, 8 / 9)}
_THREE = {"steps": 270_000, "lr_steps": (7 / 9, 25 / 27)}
_SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "warmup_steps": 1000, "warmup_factor": 1e-3}
_WHOLE = {"crop": (0, 0), "short_sides": tuple(range(640, 801, 32)), "max_side": 1333, "colour_jitter": 0.0}
_DETECTRON2 = _SGD | _WHOLE | {"lr": 0.02, "batch_size": 16, "schedule": "steps"}
_FCN = _SGD | _WHOLE | {"lr": 0.01, "batch_size": 16, "schedule": "poly", "poly_power": 0.9, "clip_value": 35.0}
_FCN_600 = _FCN | {"short_sides": tuple(range(440, 601, 32)), "max_side": 1000, "steps": 270_000}
_POINTREND = _SGD | {
    **{"lr": 0.01, "batch_size": 32, "steps": 65_000, "schedule": "steps", "lr_steps": (8 / 13, 11 / 13)},
    **{"short_sides": tuple(range(512, 2049, 256)), "max_side": 4096, "crop": (512, 1024), "crop_category_max": 0.75},
}
_MASKFORMER = {
    **{"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-4, "backbone_lr_mult": 0.1, "schedule": "poly"},
    **{"poly_power": 0.9, "clip_norm": 0.01, "pad_value": 128.0, "batch_size": 16, "steps": 160_000},
}
_ADE20K = _MASKFORMER | {"crop": (512, 512), "max_side": 2048}
_ADE20K |= {"short_sides": tuple(int(51.2 * x) for x in range(5, 21))}
_SWIN_L = _MASKFORMER | {
    **{"lr": 6e-5, "weight_decay": 0.01, "backbone_lr_mult": 1.0, "warmup_steps": 1500, "warmup_factor": 1e-6},
    **{"crop": (640, 640), "short_sides": tuple(64 * x for x in range(5, 21)), "max_side": 2560},
    "model_args": {"backbone_drop_path_rate": 0.3},
}
_COCOSTUFF = _MASKFORMER | {"batch_size": 32, "steps": 60_000, "crop": (640, 640), "max_side": 2560}
_COCOSTUFF |= {"short_sides": tuple(64 * x for x in range(5, 16))}
_RCNN = {"1x": _DETECTRON2 | _ONE, "3x": _DETECTRON2 | _THREE}

# head, backbones (* any of the zoo), ending of the name -> schedule -> settings
TRAININGS: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {
    **dict.fromkeys([(head, "*", "_coco") for head in ("faster_rcnn", "mask_rcnn", "pointrend_rcnn")], _RCNN),
    ("panoptic_fpn", "*", "_coco"): _RCNN,
    ("panoptic_fcn", "*", "_600_coco"): {"3x": _FCN_600},
    ("panoptic_fcn", "*", "_coco"): {"1x": _FCN | {"steps": 90_000}, "3x": _FCN | {"steps": 270_000}},
    ("pointrend", "*", "_cityscapes"): {"paper": _POINTREND},
    ("maskformer", "resnet50 resnet101", "_ade20k"): {"paper": _ADE20K},
    ("maskformer", "swin_l", "_ade20k"): {"paper": _SWIN_L},
    ("maskformer", "resnet50 resnet101", "_cocostuff10k"): {"paper": _COCOSTUFF},
}


def trainings(model: str) -> dict[str, dict[str, Any]]:
    """Schedule -> the settings of the official training of a model of the zoo; nothing where none is known."""
    spec = get_spec(model)[0]
    for (head, backbones, ending), found in TRAININGS.items():
        known = backbones == "*" or spec.backbone in backbones.split()
        if spec.head == head and known and spec.name.endswith(ending):
            return found
    return {}


def official_settings(name: str) -> dict[str, Any]:
    """The settings of `official/MODEL`, or `official/MODEL.SCHEDULE`; without one, that of the model's first weights.

    ValueError for a model that has no official training, or not that one; it lists those that it has.
    """
    model, _, schedule = name.removeprefix(PREFIX).partition(".")
    found = trainings(model)
    if not found:
        known = ", ".join(m for m in list_models() if m.endswith(_ENDINGS) and trainings(m))
        raise ValueError(f"no official training of {model!r} is known; there are {known}")
    if schedule and schedule not in found:
        raise ValueError(f"{model!r} has no official training {schedule!r}; it has {', '.join(found)}")
    first = next(iter(get_spec(model)[0].weights), "")
    schedule = schedule or (first if first in found else next(iter(found)))
    start = {"neck_init": "official"} if get_spec(model)[0].neck == "fapn" else {}
    settings = {"model": model, "pretrained_backbone": True, "amp": "no", "out": f"runs/{model}.{schedule}"}
    settings |= {"offset_lr_mult": 1.0} | found[schedule]
    return settings | {"model_args": start | settings.get("model_args", {})}


_ENDINGS = tuple({ending for _, _, ending in TRAININGS})
