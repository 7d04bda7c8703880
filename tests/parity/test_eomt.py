"""EoMT of Hugging Face transformers with our random weights: logits, loss and answers; and both schemes of names."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import EomtConfig, EomtForUniversalSegmentation, EomtImageProcessor

import fapn_zoo
from fapn_zoo.convert.key_maps import official_names
from fapn_zoo.convert.names import to_zoo
from fapn_zoo.modules.heads.outputs import MaskFormerOutput, Targets
from fapn_zoo.modules.losses import point_criterion
from fapn_zoo.postprocess.answers import Frame
from fapn_zoo.postprocess.decoders import decode, semantic_scores

pytestmark = pytest.mark.parity
CLASSES, QUERIES, BLOCKS = 5, 12, 3
THINGS = (0, 2, 3)
CASES = [(64, 0), (64, 1), (96, 2)]  # size, seed


def pair(size: int, seed: int) -> tuple[fapn_zoo.model.ZooModel, EomtForUniversalSegmentation]:
    """Theirs with random weights, ours with the same."""
    torch.manual_seed(seed)
    sides = {"hidden_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "image_size": size}
    config = EomtConfig(**sides, num_queries=QUERIES, num_blocks=BLOCKS, num_labels=CLASSES)
    theirs = EomtForUniversalSegmentation(config).eval()
    with torch.no_grad():
        theirs.class_predictor.weight.mul_(12)  # some classes are sure
        theirs.embeddings.register_tokens.normal_()
    options = {"depth": 5, "embed_dim": 64, "num_heads": 4, "img_size": size, "patch_size": 16}
    options = {f"backbone_{key}": value for key, value in options.items()} | {"backbone_dynamic_img_size": False}
    head = {"head_num_queries": QUERIES, "head_num_blocks": BLOCKS}
    ours = fapn_zoo.create_model("eomt_none_dinov2_s", num_classes=CLASSES, things=THINGS, **options, **head).eval()
    state = {key: value for key, value in theirs.state_dict().items() if key != "attn_mask_probs"}
    tensors, dropped = to_zoo(state, ours.spec)
    assert set(dropped) == {"criterion.empty_weight"}
    ours.load_state_dict(tensors)
    return ours, theirs


def image(size: int, seed: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("size", "seed"), CASES)
def test_logits_and_masks(size: int, seed: int, masked: bool):
    ours, theirs = pair(size, seed)
    ours.head.anneal(0.0 if masked else 1.0)
    theirs.attn_mask_probs.fill_(float(masked))
    with torch.no_grad():
        found, expected = ours(x := image(size, seed, 2)), theirs(x)
        ours.head.anneal(float(masked))
        assert not torch.allclose(ours(x).mask_logits, found.mask_logits, atol=1e-3)  # masks do matter
    assert found.covers == (size, size) and found.mask_logits.shape[-1] == size // 4 and not found.aux
    torch.testing.assert_close(found.class_logits, expected.class_queries_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mask_logits, expected.masks_queries_logits, atol=1e-4, rtol=1e-4)


def truth(size: int) -> Targets:
    generator = torch.Generator().manual_seed(9)
    corners = torch.rand(2, 4, 2, generator=generator) * size * 0.6
    places = torch.arange(size)
    masks = []
    for boxes in corners:
        rows, columns = ((places >= low) & (places < low + size * 0.4) for low in boxes.T[..., None])
        masks.append(rows[:, :, None] & columns[:, None])
    classes = tuple(torch.randint(CLASSES, (4,), generator=generator) for _ in masks)
    return Targets(classes=classes, masks=tuple(masks), seeds=torch.arange(2))


@pytest.mark.parametrize(("size", "seed"), CASES[1:])
def test_loss_of_every_layer_at_the_same_points(size: int, seed: int, monkeypatch):
    ours, theirs = pair(size, seed)
    ours.train()
    ours.head.anneal(0.0)
    theirs.train()
    points = torch.rand(1, point_criterion.POINTS, 2, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(point_criterion, "even_points", lambda seeds, count: points)
    monkeypatch.setattr(point_criterion, "training_points", lambda logits, *_: points.expand(len(logits), -1, -1))
    same = "sample_points_using_uncertainty"
    monkeypatch.setattr(type(theirs.criterion), same, lambda self, logits, *_: points.expand(len(logits), -1, -1))
    targets, x = truth(size), image(size, seed, 2)
    found = point_criterion.PointCriterion.of(ours)(ours(x, targets=targets), targets)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, device=None: points.expand(shape[0], -1, -1))
        masks = [m.float() for m in targets.masks]
        expected = theirs(x, mask_labels=masks, class_labels=list(targets.classes)).loss
    assert f"mask_{BLOCKS - 1}" in found and "dice" in found
    torch.testing.assert_close(found["loss"], expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def raw() -> list[MaskFormerOutput]:
    outputs = []
    for size, seed in CASES:
        ours, _ = pair(size, seed)
        with torch.no_grad():
            output = ours(image(size, seed))
        # as sure as trained ones
        outputs.append(output._replace(mask_logits=6 * (output.mask_logits - output.mask_logits.mean((2, 3), True))))
    return outputs


def theirs_of(output: MaskFormerOutput) -> tuple[SimpleNamespace, dict]:
    size = output.covers[0]
    names = {"masks_queries_logits": output.mask_logits, "class_queries_logits": output.class_logits}
    return SimpleNamespace(**names, patch_offsets=None), {"size": {"shortest_edge": size, "longest_edge": size}}


def test_semantic_answers(raw: list[MaskFormerOutput]):
    for output in raw:
        names, options = theirs_of(output)
        answers = EomtImageProcessor().post_process_semantic_segmentation(
            names, [output.covers], **options, return_segmentation_scores=True
        )
        torch.testing.assert_close(
            semantic_scores(output, Frame(output.covers, output.covers)), answers[0].segmentation_scores
        )


def test_panoptic_answers(raw: list[MaskFormerOutput]):
    data, total = fapn_zoo.DataSpec(things=THINGS), 0
    stuff = [k for k in range(CLASSES) if k not in THINGS]
    for output in raw:
        names, options = theirs_of(output)
        rule = {"threshold": 0.3, "overlap_mask_area_threshold": 0.1, "stuff_classes": stuff}
        (other,) = EomtImageProcessor().post_process_panoptic_segmentation(names, [output.covers], **options, **rule)
        frame = Frame(output.covers, output.covers)
        found = decode(output, "panoptic", frame, data, object_threshold=0.3, overlap_threshold=0.1)
        assert [s.category_id for s in found.segments] == [s["label_id"] for s in other["segments_info"]]
        assert torch.equal(found.ids.long() - 1, other["segmentation"])
        things = [
            (s.score, t["score"]) for s, t in zip(found.segments, other["segments_info"], strict=True) if s.isthing
        ]
        assert all(a == pytest.approx(b, abs=1e-5) for a, b in things)
        total += len(found.segments)
    assert total > 6


def test_instance_scores(raw: list[MaskFormerOutput]):
    """Theirs keeps the best class of each query; the authors' code, and ours, the best pairs."""
    data, total = fapn_zoo.DataSpec(), 0
    for output in raw:
        names, options = theirs_of(output)
        processor = EomtImageProcessor()
        (other,) = processor.post_process_instance_segmentation(names, [output.covers], threshold=0.25, **options)
        found = decode(output, "instance", Frame(output.covers, output.covers), data, score_threshold=0.25)
        ours = [(s.category_id, s.score) for s in found.segments]
        for segment in other["segments_info"]:
            assert any(k == segment["label_id"] and abs(v - segment["score"]) < 1e-4 for k, v in ours)
        total += len(other["segments_info"])
    assert total > 6


def test_both_schemes_of_names_come_back():
    ours, theirs = pair(64, 0)
    state = ours.state_dict()
    names = official_names(ours.spec).keys.translate(state)
    assert names.keys() == state.keys() and len(set(names.values())) == len(names)
    authors = {names[key]: value for key, value in state.items()}
    assert (
        "network.encoder.backbone.blocks.4.attn.qkv.weight" in authors and "network.upscale.1.conv2.weight" in authors
    )
    for extra in ({}, {"network.attn_mask_probs": torch.zeros(BLOCKS), "network.encoder.pixel_mean": torch.zeros(1)}):
        tensors, _ = to_zoo(authors | extra, ours.spec)
        assert tensors.keys() == state.keys() and all(torch.equal(tensors[key], state[key]) for key in state)
    for shares, words in ((torch.ones(BLOCKS), "is not finished"), (torch.zeros(4), "join 4 blocks, those of .* 3")):
        with pytest.raises(ValueError, match=words):
            to_zoo(theirs.state_dict() | {"attn_mask_probs": shares}, ours.spec)
    with pytest.raises(ValueError, match="1 missing.*attn.qkv.bias"):
        to_zoo(
            {
                k: v
                for k, v in theirs.state_dict().items()
                if k not in ("attn_mask_probs", "layers.0.attention.k_proj.bias")
            },
            ours.spec,
        )


def test_windows_for_classes():
    """Theirs cuts the long side into as few windows as cover it and averages class scores; by itself, so do we."""
    ours, theirs = pair(64, 0)
    ours.spec = dataclasses.replace(ours.spec, data=dataclasses.replace(ours.data, test_size=64, test_window=64))
    theirs.attn_mask_probs.zero_()
    for height, width in ((64, 150), (131, 64), (64, 64)):
        pixels = torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
        sides = {"size": {"shortest_edge": 64, "longest_edge": None}}
        inputs = EomtImageProcessor(do_resize=False, do_split_image=True, **sides)(pixels, return_tensors="pt")
        with torch.no_grad():
            outputs = theirs(inputs["pixel_values"], patch_offsets=inputs["patch_offsets"])
        processor = EomtImageProcessor()
        (expected,) = processor.post_process_semantic_segmentation(outputs, [(height, width)], **sides)
        found = torch.as_tensor(ours.predict(pixels, amp="no").labels)
        assert (found == expected).float().mean() > 0.999 and len(found.unique()) > 1
