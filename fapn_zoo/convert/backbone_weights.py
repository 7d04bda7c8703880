"""ImageNet weights of a backbone from a file on this machine, by timm's names or in timm's order."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import timm
import torch
from torch import Tensor

from fapn_zoo.convert.reading import read_checkpoint
from fapn_zoo.model import ZooModel
from fapn_zoo.modules.backbones.plan import plain_key
from fapn_zoo.weights.finite import check_finite
from fapn_zoo.weights.folder import LoadReport, adapt_input, assign_tensors

logger = logging.getLogger(__name__)

BODY = "backbone.body."


def load_backbone(model: ZooModel, path: str | Path) -> LoadReport:
    """Gives the timm network of a model's backbone the weights of a classifier.

    Args:
        path: safetensors or a torch file, which is read without running what is in it. Its names are timm's, with or
            without the layers behind the pyramid. Or they are others, the network is one that timm has from TensorFlow
            (`tf_...`), and in the order of timm's whole network all shapes and last words of names are equal.

    Returns:
        How many tensors were taken, and which were adapted to another number of bands.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; tensors that are not this network's, with counts and the
            first difference. The model is as it was.
    """
    tensors, body = read_checkpoint(path), model.backbone.body.state_dict()
    with torch.device("meta"):
        whole = timm.create_model(model.backbone.timm_name).state_dict()
    named = {plain_key(key): value for key, value in tensors.items()}
    known = {plain_key(key) for key in (*whole, *body)}
    missing = [key for key in body if plain_key(key) not in named and not key.endswith(".num_batches_tracked")]
    foreign = [key for key in tensors if plain_key(key) not in known]
    if missing or foreign:
        difference = _difference_in_order(tensors, whole)
        if not difference and not model.backbone.timm_name.startswith("tf_"):
            difference = "all shapes are its own, but such names are TensorFlow's, whose padding a tf_... backbone has"
        if difference:
            counts = f"{len(missing)} of the network's {len(body)} names are not in it"
            counts += f" (first {missing[0]})" if missing else ""
            counts += f", {len(foreign)} of its {len(tensors)} are no names of the network"
            counts += f" (first {foreign[0]})" if foreign else ""
            raise ValueError(f"{path} is not of backbone {model.backbone.name!r}: {counts}; in order, {difference}")
        named = {plain_key(key): value for key, value in zip(whole, tensors.values(), strict=True)}
    check_finite(named.items(), f"{path} cannot be a start: its weights")
    taken = {BODY + key: named[plain_key(key)] for key in body if plain_key(key) in named}
    state = model.state_dict()
    adapted = [] if model.spec.in_chans == 3 else adapt_input(taken, state, 3, model.spec.in_chans)
    assign_tensors(model, taken, path, fresh=[key for key in state if not key.startswith(BODY)])
    report = LoadReport(len(taken), tuple(adapted))
    logger.info("backbone %s from %s: %s", model.backbone.name, path, report)
    return report


def _difference_in_order(tensors: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> str:
    """The first place where tensors are not those of the whole network in its order; "" where they are."""
    for place, (mine, its) in enumerate(zip_longest(tensors.items(), whole.items()), 1):
        if mine is None or its is None:
            return f"it has {len(tensors)} tensors and the whole network {len(whole)}"
        (name, tensor), (key, wanted) = mine, its
        if tensor.shape != wanted.shape or name.rpartition(".")[2] != key.rpartition(".")[2]:
            return f"tensor {place} is {name} {tuple(tensor.shape)}, the network's {key} {tuple(wanted.shape)}"
    return ""
