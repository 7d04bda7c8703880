"""A second witness: MaskFormer of Hugging Face transformers, given our random weights, computes our numbers."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

import fapn_zoo

pytestmark = pytest.mark.parity

STAGES = [f"stage{i}" for i in range(1, 5)]
RESNET50 = transformers.ResNetConfig(depths=[3, 4, 6, 3], layer_type="bottleneck", out_features=STAGES)
SWIN_T = transformers.MaskFormerSwinConfig(
    embed_dim=96,
    depths=[2, 2, 6, 2],
    num_heads=[3, 6, 12, 24],
    window_size=7,
    layer_norm_eps=1e-5,
    drop_path_rate=0.0,
    out_features=STAGES,
)
# their names -> ours, applied in order
NAMES = [
    (r"^model\.pixel_level_module\.encoder\.embedder\.embedder\.convolution\.", "backbone.body.conv1."),
    (r"^model\.pixel_level_module\.encoder\.embedder\.embedder\.normalization\.", "backbone.body.bn1."),
    (
        r"^model\.pixel_level_module\.encoder\.encoder\.stages\.(\d)\.layers\.",
        lambda m: f"backbone.body.layer{int(m[1]) + 1}.",
    ),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}"),
    (r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}"),
    (r"^model\.pixel_level_module\.encoder\.hidden_states_norms\.", "backbone.norm"),
    (r"^model\.pixel_level_module\.encoder\.model\.embeddings\.", "backbone.body.patch_embed."),
    (r"patch_embeddings\.projection", "proj"),
    (
        r"^model\.pixel_level_module\.encoder\.model\.encoder\.layers\.(\d)\.downsample",
        lambda m: f"backbone.body.layers_{int(m[1]) + 1}.downsample",
    ),
    (r"^model\.pixel_level_module\.encoder\.model\.encoder\.layers\.", "backbone.body.layers_"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.self\.relative", "attn.relative"),
    (r"attention\.self\.(query|key|value)", r"attn.qkv[\1]"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"^(backbone.*)\.output\.dense", r"\1.mlp.fc2"),
    (r"^model\.pixel_level_module\.decoder\.fpn\.stem\.0", "neck.output.3.conv"),
    (r"^model\.pixel_level_module\.decoder\.fpn\.stem\.1", "neck.output.3.norm"),
    (
        r"^model\.pixel_level_module\.decoder\.fpn\.layers\.(\d)\.(proj|block)\.(\d)",
        lambda m: f"neck.{'lateral' if m[2] == 'proj' else 'output'}.{2 - int(m[1])}.{'norm' if int(m[3]) else 'conv'}",
    ),
    (r"^model\.pixel_level_module\.decoder\.mask_projection", "head.mask_features.conv"),
    (r"^model\.transformer_module\.queries_embedder", "head.decoder.query_embed"),
    (r"^model\.transformer_module\.input_projection", "head.decoder.input_proj.conv"),
    (r"^model\.transformer_module\.decoder\.layernorm", "head.decoder.norm"),
    (r"^model\.transformer_module\.decoder\.layers", "head.decoder.layers"),
    (r"self_attn_layer_norm", "norm1"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"final_layer_norm", "norm3"),
    (r"encoder_attn", "cross_attn"),
    (r"^(head.*)\.([qkv])_proj\.", r"\1.in_proj_[\2]"),
    (r"\.o_proj", ".out_proj"),
    (r"^(head.decoder.layers.\d)\.(?:mlp\.)?fc(\d)", r"\1.linear\2"),
    (r"^class_predictor", "head.class_embed"),
    (r"^mask_embedder\.(\d)\.0", lambda m: f"head.mask_embed.{2 * int(m[1])}"),
]
# what they keep beside: counters, indices made anew, the loss, and a norm that nothing reads
THEIRS_ALONE = re.compile(r"num_batches_tracked|relative_position_index|criterion|encoder\.model\.layernorm")


def from_ours(ours: dict[str, Tensor], their_keys: list[str]) -> dict[str, Tensor]:
    """Our tensors by their names; asserts that every one of ours is used."""
    theirs, used = {}, set()
    for key in their_keys:
        if THEIRS_ALONE.search(key):
            continue
        name = key
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        third = re.search(r"\[(query|key|value|q|k|v)\]", name)
        if third:  # one of the three projections that we keep in one tensor
            name = name.replace(third[0], "")
            theirs[key] = ours[name].chunk(3)["qkv".index(third[1][0])]
        else:
            theirs[key] = ours[name]
        used.add(name)
    assert used == set(ours), sorted(set(ours) - used)[:5]
    return theirs


@pytest.mark.parametrize(
    "name, backbone", [("maskformer_fpn_resnet50_ade20k", RESNET50), ("maskformer_fpn_swin_t_ade20k", SWIN_T)]
)
def test_transformers_computes_the_same_logits(name, backbone):
    torch.manual_seed(0)
    model = fapn_zoo.create_model(name).eval()
    randomise(model)
    decoder = DetrConfig(
        d_model=256,
        decoder_layers=6,
        decoder_attention_heads=8,
        decoder_ffn_dim=2048,
        encoder_layers=0,
        num_queries=100,
    )
    config = MaskFormerConfig(backbone_config=backbone, decoder_config=decoder, num_labels=150)
    other = MaskFormerForInstanceSegmentation(config).eval()
    missing, unexpected = other.load_state_dict(from_ours(model.state_dict(), list(other.state_dict())), strict=False)
    assert not unexpected and all(THEIRS_ALONE.search(key) for key in missing)
    x = torch.randn(1, 3, 250, 330)  # larger than a window at every stage: smaller ones they compute differently
    with torch.no_grad():
        ours, theirs = model(x), other(pixel_values=x)
    ratios = {
        "class logits": difference(ours.class_logits, theirs.class_queries_logits),
        "mask logits": difference(ours.mask_logits, theirs.masks_queries_logits),
    }
    print(f"\n{name} against transformers {transformers.__version__}: {ratios}")
    assert max(ratios.values()) < 1e-4


def randomise(model: nn.Module) -> None:
    """Statistics and biases away from 0 and 1, and queries that differ, so that nothing hides."""
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.dim() == 1:
            value.uniform_(0.5, 1.0)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference in standard deviations."""
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.std()).item()
