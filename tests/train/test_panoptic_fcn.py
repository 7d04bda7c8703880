"""Panoptic FCN learns, by its loss alone and through the common loop, which neither micro-batches nor stops change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toys.resuming import check_resumes, losses_of

import fapn_zoo
from fapn_zoo.metrics import PanopticQuality
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.modules.losses import PanopticFCNLoss
from fapn_zoo.postprocess import Frame, decode
from fapn_zoo.train.loop import train
from fapn_zoo.train.settings import Settings

pytestmark = pytest.mark.train
NARROW = {"neck_out_channels": 16, "head_channels": 16, "head_embed": 8, "head_convs": 1, "head_stuff_area": 32}


@pytest.fixture
def narrow(tmp_path: Path) -> Settings:
    """No batch norm: its statistics are those of a micro-batch, by definition."""
    return Settings(
        model="panoptic_fcn_fapn",
        backbone="test_efficientnet",
        model_args=NARROW | {"backbone_norm": "frozen_bn", "neck_deform_groups": 2},
        data="scenes:4@64x96",
        val_data="none",
        crop=(64, 96),
        steps=6,
        batch_size=2,
        lr=3e-3,
        log_every=1,
        checkpoint_every=2,
        threads=1,
        out=str(tmp_path / "run"),
    )


def test_it_finds_what_it_was_shown() -> None:
    """Two objects before two regions: after 80 steps each is one segment, and PQ is above 90."""
    torch.manual_seed(0)
    options = NARROW | {"backbone": "test_efficientnet", "num_classes": 4, "things": (0, 2)}
    net = fapn_zoo.create_model("panoptic_fcn_fpn", backbone_norm="frozen_bn", **options)
    ids = np.full((64, 96), 4)
    ids[:24], ids[8:40, 8:40], ids[24:56, 56:88] = 3, 1, 2
    classes = torch.tensor([2, 0, 1, 3])
    masks = torch.from_numpy(ids)[None] == torch.arange(1, 5)[:, None, None]
    boxes = torch.tensor([[8.0, 8, 40, 40], [56, 24, 88, 56], [0, 0, 96, 24], [0, 24, 96, 64]])
    targets = Targets(classes=(classes,), masks=(masks,), boxes=(boxes,))
    image = torch.einsum("mhw,mc->chw", masks.float(), 2 * torch.randn(4, 3))[None]
    loss, optimizer = PanopticFCNLoss.of(net), torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss(net(image, None, targets), targets)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        found = decode(net.eval()(image), "panoptic", Frame((64, 96), (64, 96)), net.data)
    quality = PanopticQuality([{"id": i, "isthing": int(i in (0, 2))} for i in range(4)])
    listed = [{"id": s.id, "category_id": s.category_id} for s in found.segments]
    true = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in enumerate(classes.tolist(), 1)]
    quality.update(found.ids.numpy(), listed, ids, true, "an image")
    assert len(listed) == 4 and quality.compute()["all"]["pq"] > 0.9


def test_scenes_are_learned_and_evaluated(narrow: Settings, tmp_path: Path) -> None:
    settings = narrow.replace(steps=50, data="scenes:2@64x96", val_data="scenes:2@64x96", val_split="train", lr=5e-3)
    folder = train(settings.replace(scale=(1.0, 1.0), flip=0.0, colour_jitter=0.0))
    first, *_, last = losses_of(settings)
    assert last["loss"] < 0.5 * first["loss"], (first, last)
    report = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert report["task"] == "panoptic" and report["pq"] > 0
    model = fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.spec.head == "panoptic_fcn" and model.data.things
    assert {s["isthing"] for s in model.predict(np.zeros((30, 40, 3), np.uint8)).segments} <= {True, False}


def test_a_resumed_run_ends_with_the_same_bits(
    narrow: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_resumes(narrow, 4, tmp_path, monkeypatch)


def test_micro_batches_change_no_gradient(narrow: Settings, tmp_path: Path) -> None:
    whole = narrow.replace(optimizer="sgd", steps=3, batch_size=3)
    parts = whole.replace(micro_batch=2, out=str(tmp_path / "parts"))  # uneven: 2 + 1
    a, b = (load_file(train(settings) / "model.safetensors") for settings in (whole, parts))
    torch.testing.assert_close(losses_of(parts), losses_of(whole), rtol=1e-3, atol=1e-4)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=name)
