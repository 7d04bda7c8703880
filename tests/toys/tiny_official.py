"""Official checkpoints of models as small as their families allow, made by the goldens' rule."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from toys.golden_rule import fill
from toys.official_names import to_official

from fapn_zoo.convert.names import model_shapes
from fapn_zoo.zoo.spec import DataSpec, ModelSpec

RESNET = {"backbone_norm": "frozen_bn", "backbone_channels": (16, 24, 32, 48)}
SWIN = {"backbone_depths": (2, 1, 2, 1), "backbone_embed_dim": 16, "backbone_num_heads": (1, 1, 2, 2)}
NECK = {"neck_out_channels": 32}
DECODER = {"head_channels": 32, "head_layers": 2, "head_feedforward": 48, "head_mask_channels": 32}
ENCODER = {"encoder_channels": 32, "encoder_layers": 2, "encoder_feedforward": 48, "head_input_proj": False}
POINTS = {"backbone_stride_in_1x1": True, "head_channels": 32, "head_point_channels": 48}
QUERIES = DECODER | {"head_num_queries": 7}


def spec(name: str, head: str, neck: str, backbone: str, args: dict, **kwargs: Any) -> ModelSpec:
    groups = {"neck_deform_groups": 4} if neck == "fapn" else {}
    return ModelSpec(name, head, neck, backbone, num_classes=5, args=args | NECK | groups, **kwargs)


SPECS = [
    spec("tiny_maskformer_fapn", "maskformer", "fapn", "resnet18", RESNET | QUERIES),
    spec("tiny_maskformer_fpn", "maskformer", "fpn", "resnet18", RESNET | QUERIES),
    spec("tiny_maskformer_swin", "maskformer", "fapn", "swin_t", SWIN | QUERIES, data=DataSpec(size_divisor=32)),
    spec("tiny_maskformer_deep_stem", "maskformer", "fpn", "resnet50s", RESNET | QUERIES),
    spec("tiny_maskformer_encoder", "maskformer", "fpn", "resnet18", RESNET | QUERIES | ENCODER),
    spec("tiny_perpixel", "perpixel", "fapn", "resnet18", RESNET | {"head_mask_channels": 32}),
    spec("tiny_perpixel_plus", "perpixel_plus", "fpn", "resnet18", RESNET | DECODER),
    spec("tiny_semantic_fapn", "semantic_fpn", "fapn", "resnet18", RESNET | {"head_channels": 32}),
    spec("tiny_semantic_fpn", "semantic_fpn", "fpn", "resnet18", RESNET | {"head_channels": 32}),
    spec("tiny_pointrend_fapn", "pointrend", "fapn", "resnet50", RESNET | POINTS),
    spec("tiny_pointrend_fpn", "pointrend", "fpn", "resnet50", RESNET | POINTS),
]
BY_NAME = {spec.name.removeprefix("tiny_"): spec for spec in SPECS}


def official_state(spec: ModelSpec) -> dict[str, Tensor]:
    """An official state dict of the model, filled by the rule; derived tensors are what `to_official` makes them."""
    shapes = {key: torch.empty(shape) for key, shape in model_shapes(spec).items()}
    state = to_official(shapes, spec)
    return state | fill({key: tuple(tensor.shape) for key, tensor in state.items()})


def first_version(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of MaskFormer's first release."""
    return {key.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value for key, value in state.items()}


def write(path: Path, state: dict[str, Tensor]) -> Path:
    """A release's file: numpy arrays in a `.pkl`, tensors beside the state of a training in a `.pth`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pkl":
        arrays = {key: value.numpy() for key, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone", "matching_heuristics": True}))
    else:
        torch.save({"model": state, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "iteration": 9}, path)
    return path
