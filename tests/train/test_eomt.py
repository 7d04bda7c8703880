"""EoMT in the training loop: it learns, its masks are annealed by the step, and a resumed run ends the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys.resuming import check_resumes

from fapn_zoo.create import create_model
from fapn_zoo.modules.heads.eomt import WHOLE, EoMTHead
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train
NARROW = {"backbone_depth": 4, "backbone_embed_dim": 48, "backbone_num_heads": 3, "backbone_patch_size": 8}
NARROW |= {"head_num_queries": 8, "head_num_blocks": 2, "head_upscale": 1}


@pytest.fixture
def scenes(tiny: Settings) -> Settings:
    changes = {"model": "eomt_none", "backbone": "vit_tiny_patch16_224", "neck": None, "model_args": NARROW}
    changes |= {"data": "scenes:4@48x64", "val_data": "none", "batch_size": 2, "crop": (48, 64), "scale": (1.0, 1.0)}
    return tiny.replace(**changes, steps=6, lr=1e-3, ema=0.9)


@pytest.mark.parametrize(
    ("steps", "starts", "length"),
    [(88692, (14782, 29564, 44346, 59128), 14782), (177384, (29564, 73910, 118256), 29564)],
)
def test_the_schedule_is_the_official_one(steps: int, starts: tuple[int, ...], length: int):
    """Of ViT-L (12 epochs of COCO) and ViT-S (24): between a start and an end, poly with power 0.9."""
    head = EoMTHead(16, 16, 3, num_blocks=len(starts))
    for step in [*range(0, steps, 997), *starts, *(start + length for start in starts), steps]:
        head.anneal(step / steps)
        parts = [min(max((step - start) / length, 0.0), 1.0) for start in starts]
        found = [share / WHOLE for share in head.mask_share.tolist()]
        assert found == pytest.approx([(1 - part) ** 0.9 for part in parts], abs=1e-6), step
    assert not head.masked and head.mask_share.tolist() == [0] * len(starts)


def test_it_learns_and_predicts_without_masks(scenes: Settings, monkeypatch: pytest.MonkeyPatch):
    seen, real = [], EoMTHead.anneal

    def anneal(head: EoMTHead, done: float) -> None:
        real(head, done)
        seen.append((round(done, 4), head.masked))

    monkeypatch.setattr(EoMTHead, "anneal", anneal)
    monkeypatch.setattr("fapn_zoo.modules.losses.point_criterion.POINTS", 512)
    folder = train(scenes.replace(steps=48, colour_jitter=0.0, val_data="scenes:2@48x64", eval_every=24))
    lines = [json.loads(line) for line in (Path(scenes.out) / "log.jsonl").read_text().splitlines()]
    first, last = (sum(line["loss"] for line in part) for part in (lines[:5], lines[-5:]))
    assert last < 0.8 * first and {"class", "mask_0", "dice_1"} <= lines[0].keys()
    assert seen[0] == (0.0, True) and (0.5, True) in seen and seen[-1] == (1.0, False)
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert model.spec.task == "semantic" and not model.head.masked
    for task in ("semantic", "panoptic", "instance"):
        assert model.predict(torch.zeros(3, 50, 70, dtype=torch.uint8), task=task).task == task


def test_a_resumed_run_ends_with_the_same_bits(scenes: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fapn_zoo.modules.losses.point_criterion.POINTS", 512)
    check_resumes(scenes.replace(task="panoptic", checkpoint_every=2), 3, tmp_path, monkeypatch)


def test_masks_follow_from_the_seed_of_the_image():
    """In whatever batch it is; and with no share masked nothing is, in training too."""
    torch.manual_seed(0)
    model = create_model("eomt_none", backbone="vit_tiny_patch16_224", num_classes=3, **NARROW).train()
    x, targets = torch.randn(2, 3, 32, 48), Targets(classes=(torch.zeros(0, dtype=torch.int64),) * 2)
    targets.seeds = torch.tensor([5, 6])
    with torch.no_grad():
        model.head.anneal(0.25)
        both, alone = model(x, targets=targets), model(x[1:], targets=targets.part(1, 2))
        torch.testing.assert_close(both.mask_logits[1:], alone.mask_logits)
        targets.seeds = torch.tensor([7, 8])
        assert not torch.allclose(model(x, targets=targets).mask_logits, both.mask_logits, atol=1e-4)
        model.head.anneal(1.0)
        finished = model(x, targets=targets)
        torch.testing.assert_close(finished.mask_logits, model.eval()(x).mask_logits)
    assert len(finished.aux) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eomt_fpn", {"backbone": "dinov2_s"}, "unknown model 'eomt_fpn'"),
        ("eomt_none", {"backbone": "dinov2_s", "neck": "fpn"}, "a eomt head does not stand on the neck 'fpn'"),
        ("perpixel_fpn", {"backbone": "dinov2_s", "neck": "none"}, "perpixel head does not stand on the neck 'none'"),
        ("eomt_none", {"backbone": "dinov2_s"}, "patches of 14 pixels; give backbone_patch_size=16"),
        ("eomt_none", {"backbone": "resnet18"}, "pyramid='tokens' is for plain ViTs"),
        ("eomt_none", {"backbone": "dinov3_s"}, "other tokens can join ViTs of timm's plain kind only"),
        ("eomt_none", {"backbone": "vit_s", "backbone_pyramid": "levels"}, "takes no backbone_pyramid"),
        ("eomt_none", {"backbone": "vit_s", "head_num_blocks": 13}, "head_num_blocks=13, but backbone 'vit_s' has 12"),
        ("eomt_none", {"backbone": "vit_s", "encoder_layers": 2}, "takes no encoder_layers"),
    ],
)
def test_refused_with_the_reason(name: str, options: dict, message: str):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create_model(name, num_classes=3, **options)
