"""EoMT's weights from repositories at the Hub, on loopback: in transformers' names and in the authors'."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from toys.hub.server import Hub

import fapn_zoo
from fapn_zoo.convert.key_maps import names_in_transformers, official_names
from fapn_zoo.zoo import registry
from fapn_zoo.zoo.spec import WeightsSpec

pytestmark = pytest.mark.hub
SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3, "img_size": 96, "patch_size": 16, "dynamic_img_size": False}


def in_transformers_names(authors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turned around from what we read: their names of the authors' tensors, with queries, keys and values apart."""
    split = {}
    for key, value in authors.items():
        if key.endswith("pos_embed"):
            value = value[0]
        words = [f"layers.{i}.{part}.{what}" for i in range(3) for part, what in _parts()] + _others()
        (name,) = (word for word, found in names_in_transformers("eomt").translate(words).items() if found == key)
        if ".qkv." not in name:
            split[name] = value
            continue
        for part, third in zip("qkv", value.chunk(3), strict=True):
            split[name.replace("qkv", f"{part}_proj")] = third.clone()
    return split


def _parts() -> list[tuple[str, str]]:
    linear = ("norm1", "norm2", "attention.qkv", "attention.out_proj", "mlp.fc1", "mlp.fc2")
    return [(part, what) for part in linear for what in ("weight", "bias")] + [
        (f"layer_scale{n}", "lambda1") for n in (1, 2)
    ]


def _others() -> list[str]:
    blocks = [f"upscale_block.block.{i}" for i in (0, 1)]
    modules = [f"{block}.{part}" for block in blocks for part in ("conv1", "conv2", "layernorm2d")]
    modules += ["layernorm", "class_predictor", "query", "mask_head.fc1", "mask_head.fc2", "mask_head.fc3"]
    modules += ["embeddings.patch_embeddings.projection", "embeddings.position_embeddings"]
    tokens = ["embeddings.cls_token", "embeddings.register_tokens"]
    return tokens + [f"{module}.{what}" for module in modules for what in ("weight", "bias")]


def test_both_schemes_load_through_the_hub(ask_hub: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path):
    torch.manual_seed(0)
    options = {f"backbone_{key}": value for key, value in SMALL.items()} | {"head_num_queries": 5, "head_num_blocks": 1}
    model = fapn_zoo.create_model("eomt_none_dinov2_s", num_classes=3, things=(0, 1), **options).eval()
    state = model.state_dict()
    names = official_names(model.spec).keys.translate(state)
    del names["head.mask_share"]
    authors = {names[key]: value for key, value in state.items() if key in names}
    pickled = io.BytesIO()
    torch.save(authors | {"network.attn_mask_probs": torch.zeros(1)}, pickled)
    theirs = in_transformers_names(authors) | {
        "attn_mask_probs": torch.zeros(1),
        "criterion.empty_weight": torch.ones(4),
    }
    files = {
        "tiny": {"model.safetensors": save(theirs)},
        "older": {"pytorch_model.bin": pickled.getvalue()},
        "none": {},
    }
    locations = {name: WeightsSpec("official", f"hf:tue/{name}", license="mit", page="https://x.org") for name in files}
    spec = dataclasses.replace(model.spec, name="eomt_tiny", weights=locations)
    monkeypatch.setattr(registry, "_registered", {"eomt_tiny": spec})
    with Hub() as server:
        for name, content in files.items():
            server.add(f"tue/{name}", content | {"README.md": b""})
        ask_hub(server.url)
        for name in ("tiny", "older"):
            loaded = fapn_zoo.create_model(f"eomt_tiny.{name}", pretrained=True)
            found = loaded.state_dict()
            assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
            asked = len(server.requests)
            fapn_zoo.create_model(f"eomt_tiny.{name}", pretrained=True)  # from the cache
            assert len(server.requests) == asked
        with pytest.raises(FileNotFoundError, match="tue/none .* neither model.safetensors nor pytorch_model.bin"):
            fapn_zoo.create_model("eomt_tiny.none", pretrained=True)
    ask_hub("http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="tue/older"):
        fapn_zoo.create_model("eomt_tiny.older", pretrained=True, cache_dir=tmp_path / "another")
