"""Panoptic and instance answers beside those of transformers' MaskFormer, where the rules agree.

They agree where masks are sure and no map is resized. Where they do not, the official code's rule is ours: transformers
resizes probabilities instead of logits, takes the area of a mask from its probability times its score, and counts on
from the id of stuff that was joined.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from toys.decoding import instances, panoptic
from transformers import MaskFormerImageProcessor

from fapn_zoo.modules.heads.outputs import MaskFormerOutput

pytestmark = pytest.mark.parity
SIZE, CLASSES = (40, 56), 5


def random_output(seed: int) -> MaskFormerOutput:
    """Queries of rectangles that overlap, at stride 1, whose masks and classes are sure."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.full((1, 12, *SIZE), -12.0)
    classes = torch.zeros(1, 12, CLASSES + 1)
    for query in range(12):
        y, x = (int(torch.randint(0, side - 8, (1,), generator=generator)) for side in SIZE)
        height, width = torch.randint(5, 20, (2,), generator=generator).tolist()
        masks[0, query, y : y + height, x : x + width] = 12.0
        chosen = int(torch.randint(0, CLASSES + 1, (1,), generator=generator))
        classes[0, query, chosen] = 12.0 + query / 8
    return MaskFormerOutput(classes, masks, stride=1)


@pytest.mark.parametrize("seed", range(5))
def test_panoptic(seed: int) -> None:
    output = random_output(seed)
    theirs = SimpleNamespace(class_queries_logits=output.class_logits, masks_queries_logits=output.mask_logits)
    options = {"threshold": 0.8, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.6, "label_ids_to_fuse": set()}
    (other,) = MaskFormerImageProcessor().post_process_panoptic_segmentation(theirs, **options)
    (found,) = panoptic(output, SIZE, SIZE, things=tuple(range(CLASSES)), overlap_threshold=0.6)
    assert found.segments and [s.category_id for s in found.segments] == [s["label_id"] for s in other["segments_info"]]
    assert [s.score for s in found.segments] == pytest.approx([s["score"] for s in other["segments_info"]], abs=1e-5)
    for ours, of_theirs in zip(found.segments, other["segments_info"], strict=True):
        assert torch.equal(found.ids == ours.id, other["segmentation"] == of_theirs["id"])


@pytest.mark.parametrize("seed", range(5))
def test_instances(seed: int) -> None:
    output = random_output(seed)
    theirs = SimpleNamespace(class_queries_logits=output.class_logits, masks_queries_logits=output.mask_logits)
    processor = MaskFormerImageProcessor()
    (other,) = processor.post_process_instance_segmentation(theirs, threshold=0.5, return_binary_maps=True)
    (found,) = instances(output, SIZE, SIZE, max_instances=12)
    rows = sorted(zip(other["segments_info"], other["segmentation"], strict=True), key=lambda row: -row[0]["score"])
    assert found.segments and len(found.segments) == len(rows)
    assert [s.score for s in found.segments] == pytest.approx([s["score"] for s, _ in rows], abs=1e-5)
    ours = {(s.category_id, mask.numpy().tobytes()) for s, mask in zip(found.segments, found.masks, strict=True)}
    assert ours == {(s["label_id"], (mask > 0).numpy().tobytes()) for s, mask in rows}
