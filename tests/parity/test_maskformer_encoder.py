"""MaskFormer with a transformer encoder, computed a second time from an official state dict by plain functions.

No stored outputs exist of these models: this is written from the papers of DETR and MaskFormer, by official names.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from toys.golden_rule import fill, image
from toys.official_names import to_official

from fapn_zoo.convert import to_zoo
from fapn_zoo.convert.names import model_shapes
from fapn_zoo.model import build
from fapn_zoo.zoo.registry import resolve

pytestmark = pytest.mark.parity
HEADS = 8
DECODER, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."


class Plain:
    """Layers as functions of an official state dict; tokens are (positions, C), maps (1, C, H, W)."""

    def __init__(self, state):
        self.state = {key: value.double() for key, value in state.items()}

    def linear(self, x, name, suffix=".weight"):
        bias = self.state[name + suffix.replace("weight", "bias")]
        return x @ self.state[name + suffix].t() + bias

    def norm(self, x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attention(self, queries, keys, values, name):
        weights, biases = (self.state[f"{name}.in_proj_{what}"].chunk(3) for what in ("weight", "bias"))
        q, k, v = (
            (x @ w.t() + b).unflatten(1, (HEADS, -1)).transpose(0, 1)
            for x, w, b in zip((queries, keys, values), weights, biases, strict=True)
        )
        mixed = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.linear(mixed.transpose(0, 1).flatten(1), f"{name}.out_proj")

    def feedforward(self, x, name):
        return self.linear(self.linear(x, f"{name}.linear1").clamp(min=0), f"{name}.linear2")

    def conv(self, x, name):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def conv_norm(self, x, name):
        return F.group_norm(self.conv(x, name), 32, self.state[f"{name}.norm.weight"], self.state[f"{name}.norm.bias"])


def positions(height, width, channels):
    """(height * width, channels), one number at a time."""
    half, table = channels // 2, torch.zeros(height, width, channels, dtype=torch.float64)
    for axis, size in ((0, height), (1, width)):
        for place in range(size):
            angle = (place + 1) / (size + 1e-6) * 2 * math.pi
            for c in range(half):
                value = (math.cos if c % 2 else math.sin)(angle / 10000 ** (2 * (c // 2) / half))
                table.select(axis, place)[:, axis * half + c] = value
    return table.flatten(0, 1)


def plain_maskformer(state, features):
    """Class logits (Q, K + 1) and masks (Q, h, w) from the backbone's four maps."""
    net = Plain(state)
    height, width = features[-1].shape[-2:]
    memory = net.conv(features[-1], DECODER + "input_proj")[0].flatten(1).t()
    position = positions(height, width, memory.shape[1])
    for i in range(6):
        name = f"{DECODER}transformer.encoder.layers.{i}"
        q = memory + position
        memory = net.norm(memory + net.attention(q, q, memory, f"{name}.self_attn"), f"{name}.norm1")
        memory = net.norm(memory + net.feedforward(memory, name), f"{name}.norm2")
    y = net.conv_norm(memory.t().unflatten(1, (height, width))[None], DECODER + "layer_4").relu()
    for level in (3, 2, 1):
        lateral = net.conv_norm(features[level - 1], f"{DECODER}adapter_{level}")
        y = net.conv_norm(lateral + F.interpolate(y, size=lateral.shape[-2:]), f"{DECODER}layer_{level}").relu()
    places = net.state[PREDICTOR + "query_embed.weight"]
    x = torch.zeros_like(places)
    for i in range(6):
        name = f"{PREDICTOR}transformer.decoder.layers.{i}"
        q = x + places
        x = net.norm(x + net.attention(q, q, x, f"{name}.self_attn"), f"{name}.norm1")
        q = x + places
        x = net.norm(x + net.attention(q, memory + position, memory, f"{name}.multihead_attn"), f"{name}.norm2")
        x = net.norm(x + net.feedforward(x, name), f"{name}.norm3")
    x = net.norm(x, PREDICTOR + "transformer.decoder.norm")
    classes, embedded = net.linear(x, PREDICTOR + "class_embed"), x
    for i in range(3):
        embedded = net.linear(embedded, f"{PREDICTOR}mask_embed.layers.{i}")
        embedded = embedded.clamp(min=0) if i < 2 else embedded
    return classes, torch.einsum("qc,chw->qhw", embedded, net.conv(y, DECODER + "mask_features")[0])


@pytest.mark.parametrize("size", [(250, 333), (96, 64)])
def test_six_encoder_layers_twice(size):
    spec = resolve("maskformer_fpn_resnet50_coco_panoptic")[0]
    empty = to_official({key: torch.empty(shape) for key, shape in model_shapes(spec).items()}, spec)
    state = fill({key: tuple(tensor.shape) for key, tensor in empty.items()})
    model = build(spec, empty=True)
    model.load_state_dict(to_zoo(state, spec)[0], assign=True)
    model.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.data.mean, spec.data.std))
    x = ((image(*size) - mean) / std)[None]  # not padded: the official model of COCO does not
    with torch.no_grad():
        found = model(x)
        classes, masks = plain_maskformer(state, [feature.double() for feature in model.backbone(x)])
    for ours, theirs in ((found.class_logits[0], classes), (found.mask_logits[0], masks)):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.std()
