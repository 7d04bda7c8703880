"""The training loop on a tiny net: learning, logging, evaluation, and how the batch may be spread."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fapn_zoo import create_model
from fapn_zoo.evaluate import evaluate
from fapn_zoo.modules.heads.outputs import Targets
from fapn_zoo.train import loop
from fapn_zoo.train.loop import in_background, train
from fapn_zoo.train.run import step_seed
from fapn_zoo.train.settings import Settings
from fapn_zoo.weights.finite import named_tensors
from fapn_zoo.zoo.parts import HEADS

pytestmark = pytest.mark.train

# No batch norm anywhere: its statistics are those of a micro-batch, by definition.
NO_BATCH_NORM = {"neck_out_channels": 16, "head_mask_channels": 16, "neck_norm": "gn", "backbone_norm": "frozen_bn"}

MASKFORMER = {"neck_out_channels": 32, "head_num_queries": 6, "head_layers": 2}


def log_of(folder: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def losses_of(folder: str | Path) -> list[float]:
    return [line["loss"] for line in log_of(folder)]


def test_a_run_learns_and_leaves_what_it_promises(tiny: Settings, pictures: Path, caplog):
    settings = tiny.replace(steps=60, eval_every=30, log_every=10, warmup_steps=5, clip_norm=1.0, ema=0.9)
    with caplog.at_level("INFO", "fapn_zoo"):
        folder = train(settings)
    out = Path(settings.out)
    assert folder == out / "model"
    lines = log_of(out)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["lr"] == pytest.approx(settings.lr * (1 / 60) ** 0.9)
    assert json.loads((out / "settings.json").read_text()) == settings.to_dict()
    assert [row["step"] for row in csv.DictReader((out / "metrics.csv").open())] == ["30", "60"]

    report = json.loads((out / "eval.json").read_text())
    assert report["miou"] > 0.5 and report["split"] == "val" and report["images"] == 5
    assert any(f"step 60: mIoU {100 * report['miou']:.2f}, pixel accuracy " in line for line in caplog.messages)
    model = create_model(f"local-dir:{folder}", pretrained=True)
    assert model.data.labels == ("ground", "tree", "sign") and len(model.data.palette) == 3
    assert str(out.parent) not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    assert str(pictures.parent) not in (folder / "config.json").read_text()
    again = evaluate(model, str(pictures), "val", progress=False)
    assert again["miou"] == report["miou"]  # the folder holds the averaged weights that were scored


# One line per model: the losses of ten steps on the pictures of conftest.py, one thread, torch 2.15 on x86. A change
# that is meant to leave the numbers alone must keep them; one that is not says so and renews them.
SEQUENCES = {
    "perpixel_fapn": [0.94468, 0.9435, 0.91524, 0.75376, 0.76195, 0.87869, 0.72356, 0.60666, 0.5616, 0.62134],
    "pointrend_fapn": [2.87674, 2.87701, 2.65154, 2.55326, 2.2657, 2.20652, 2.04892, 1.94718, 1.95222, 1.98272],
    "maskformer_fapn": [11.45199, 8.71939, 7.82893, 8.25741, 8.69615, 7.96787, 7.98725, 7.86929, 7.60183, 7.53502],
}


@pytest.mark.parametrize(
    ("model", "lr", "arguments"),
    [
        ("perpixel_fapn", 1e-3, {"neck_out_channels": 32, "head_mask_channels": 16}),
        ("maskformer_fapn", 1e-4, MASKFORMER | {"head_dropout": 0.0}),
        ("pointrend_fapn", 1e-3, {"neck_out_channels": 32, "head_channels": 32, "head_train_points": 128}),
    ],
)
def test_the_stored_loss_sequence(tiny: Settings, model: str, lr: float, arguments: dict):
    before = {"model_args": {"neck_init": "official", **arguments}, "offset_lr_mult": 1.0}
    settings = tiny.replace(model=model, lr=lr, weight_decay=0.05, warmup_steps=3, clip_norm=1.0, **before)
    train(settings.replace(steps=10, val_data="none"))
    # Which points PointRend draws turns on rounding: a rate that is larger by 1e-7 moves its later losses by 2 %.
    steady = 4 if model == "pointrend_fapn" else 10
    found = losses_of(tiny.out)
    assert found[:steady] == pytest.approx(SEQUENCES[model][:steady], rel=1e-4, abs=1e-4)
    assert found == pytest.approx(SEQUENCES[model], rel=0.05)


def test_the_last_two_checkpoints_stay(tiny: Settings):
    train(tiny.replace(steps=5, checkpoint_every=2, val_data="none"))
    names = sorted(path.name for path in (Path(tiny.out) / "checkpoint").iterdir())
    assert names == ["step-00000004", "step-00000005"]
    assert not (Path(tiny.out) / "eval.json").exists()


# Sizes differ within a batch, and those of a micro-batch or a process from those of the whole.
WHOLE_PICTURES = {"crop": (0, 0), "short_sides": (24, 40, 72), "max_side": 80, "clip_value": 0.05}


@pytest.mark.parametrize("sizes", [{}, WHOLE_PICTURES])
def test_micro_batches_change_no_gradient(tiny: Settings, tmp_path: Path, sizes: dict):
    whole = tiny.replace(val_data="none", model_args=NO_BATCH_NORM, steps=6, **sizes)
    parts = whole.replace(micro_batch=3, out=str(tmp_path / "parts"))  # uneven: 3 + 1
    a, b = load_file(train(whole) / "model.safetensors"), load_file(train(parts) / "model.safetensors")
    torch.testing.assert_close(losses_of(parts.out), losses_of(whole.out), rtol=1e-4, atol=1e-5)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=2e-4, msg=name)


def test_two_processes_equal_one(tiny: Settings, tmp_path: Path, start):
    one = tiny.replace(model_args=NO_BATCH_NORM, steps=6, **WHOLE_PICTURES)
    two = one.replace(out=str(tmp_path / "two"))
    process = start(two, processes=2)
    train(one)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    torch.testing.assert_close(losses_of(two.out), losses_of(one.out), rtol=1e-4, atol=1e-5)
    scores = [json.loads((Path(s.out) / "eval.json").read_text())["miou"] for s in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)


def test_more_objects_than_queries_however_the_batch_is_spread(tiny: Settings, tmp_path: Path, start):
    """Two queries for up to three classes: in micro-batches and on two processes each image counts for itself."""
    fixed = NO_BATCH_NORM | {"head_num_queries": 2, "head_layers": 2, "head_dropout": 0.0}
    # Rounding grows where Adam divides it by its own size, so descent is plain.
    one = tiny.replace(
        model="maskformer_fpn", model_args=fixed, steps=4, val_data="none", optimizer="sgd", lr=1e-3, clip_norm=0.1
    )
    ones, two = one.replace(micro_batch=1, out=str(tmp_path / "ones")), one.replace(out=str(tmp_path / "two"))
    process = start(two, processes=2)
    for settings in (one, ones):
        train(settings)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    for settings in (ones, two):
        torch.testing.assert_close(losses_of(settings.out), losses_of(one.out), rtol=1e-4, atol=1e-5)


def test_true_masks_are_made_once_a_step_and_for_one_micro_batch_at_a_time(tiny: Settings, monkeypatch):
    real, alive, most = Targets.segments, weakref.WeakSet(), []

    def watched(self: Targets) -> list:
        fresh = self._segments is None
        made = real(self)
        if fresh:
            alive.add(self)
            most.append(len(alive))
        return made

    monkeypatch.setattr(Targets, "segments", watched)
    train(tiny.replace(model="maskformer_fpn", model_args=MASKFORMER, steps=3, micro_batch=1, val_data="none"))
    assert most == [1] * (3 * tiny.batch_size)


def test_maskformer_trains_by_the_same_loop(tiny: Settings):
    settings = tiny.replace(model="maskformer_fpn", model_args=MASKFORMER, steps=3, micro_batch=2, val_data="none")
    train(settings)
    first = log_of(settings.out)[0]
    assert {"loss", "class", "mask", "dice"} <= first.keys()


def test_frozen_parts_keep_weights_and_statistics(tiny: Settings):
    torch.manual_seed(tiny.seed)
    before = create_model(tiny.model, backbone=tiny.backbone, num_classes=3, **tiny.model_args).state_dict()
    after = load_file(train(tiny.replace(freeze="backbone", steps=3, val_data="none")) / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("backbone."), name


def test_a_frozen_vit_leaves_its_pyramid_learning_and_layers_have_their_rates(tiny: Settings, caplog):
    vit = tiny.replace(backbone="vit_tiny_patch16_224", steps=2, val_data="none", amp="no", crop=(48, 48))
    vit = vit.replace(
        model_args=tiny.model_args | {"backbone_depth": 4, "backbone_embed_dim": 48, "backbone_num_heads": 3}
    )
    torch.manual_seed(vit.seed)
    before = create_model(vit.model, backbone=vit.backbone, num_classes=3, **vit.model_args).state_dict()
    after = load_file(train(vit.replace(freeze="backbone")) / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("backbone.body."), name
    with caplog.at_level("INFO"):
        train(
            vit.replace(
                layer_decay=0.8, lr=1e-3, overwrite=True, model_args=vit.model_args | {"backbone_frozen_stages": 1}
            )
        )
    rates = ", ".join(f"{layer}: {1e-3 * 0.8 ** (5 - layer):.3g}" for layer in range(2, 5))
    told = next(m for m in caplog.messages if "learning rate of layer" in m)
    assert told == f"learning rate of layer {rates}; of all behind the backbone: 0.001"


def test_a_loss_that_is_not_finite_names_the_step(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    real, calls = loop.Run.losses, []

    def broken(self, part, totals):
        calls.append(len(calls))
        losses = real(self, part, totals)
        return {"loss": losses["loss"] * (math.inf if calls[-1] == 2 else 1), "calls": torch.tensor(calls[-1])}

    monkeypatch.setattr(loop.Run, "losses", broken)
    with pytest.raises(ValueError, match="step 2: the loss is not finite"):
        train(tiny.replace(val_data="none"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "data= is missing"),
        ({"data": "no/such/folder"}, "no/such/folder"),
        ({"num_classes": 5}, "5"),
        ({"freeze": "head,nose"}, "freeze='nose' is no module of the model; its parts are backbone, neck, head"),
        ({"val_data": "scenes:2@32x32"}, "classes"),
        ({"model": "perpixel_fpm"}, "perpixel_fp"),
        ({"model_args": {"neck_width": 3}}, "neck_width"),
    ],
)
def test_bad_settings_leave_no_folder(tiny: Settings, changes: dict, message: str):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tiny.replace(**changes))
    assert not Path(tiny.out).exists()


def test_a_head_without_a_loss_is_refused(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(HEADS, "perpixel", HEADS["perpixel"]._replace(loss=""))
    with pytest.raises(ValueError, match="a perpixel head cannot be trained yet"):
        train(tiny)
    assert not Path(tiny.out).exists()


def test_a_bad_label_file_is_named(tiny: Settings, pictures: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    Image.fromarray(np.full((48, 64), 9, np.uint8)).save(copy / "train/labels/004.png")
    with pytest.raises(ValueError, match=r"004\.png.*9"):
        train(tiny.replace(data=str(copy)))


def test_background_thread_ends_with_its_reader():
    numbers = in_background(iter(range(1000)))
    assert [next(numbers) for _ in range(3)] == [0, 1, 2]
    numbers.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]
    assert list(in_background(iter(range(5)))) == [0, 1, 2, 3, 4]

    def failing():
        yield 1
        raise OSError("disk")

    numbers = in_background(failing())
    assert next(numbers) == 1
    with pytest.raises(OSError, match="disk"):
        next(numbers)


def test_seeds():
    seeds = {step_seed(s, t, r) for s in range(3) for t in range(5) for r in range(3)}
    assert len(seeds) == 45 and all(0 <= s < 2**63 for s in seeds)


def test_half_precision_on_the_cpu_and_back_in_one_process(tiny: Settings, tmp_path: Path):
    train(tiny.replace(amp="bf16", steps=2))
    train(tiny.replace(steps=2, out=str(tmp_path / "full")))
    half, full = losses_of(tiny.out), losses_of(tmp_path / "full")
    assert half != full
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("values", ["two", "void", "one name"])
def test_nothing_to_learn_is_refused_before_out_is_touched(tiny: Settings, pictures: Path, tmp_path: Path, values: str):
    names = ["disc"] if values == "one name" else ["ground", "disc"]
    root = shutil.copytree(pictures, tmp_path / "masks")
    for file in root.glob("*/labels/*.png"):
        labels = np.asarray(Image.open(file))
        table = {"two": np.where(labels == 1, 255, 0), "void": labels * 0 + 255, "one name": labels * 0}
        Image.fromarray(table[values].astype(np.uint8)).save(file)
    (root / "classes.json").write_text(json.dumps({"names": names}))
    out = Path(tiny.out)
    (out / "model").mkdir(parents=True)
    (out / "model" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="^nothing to learn: masks, to train on: "):
        train(tiny.replace(data=str(root), overwrite=True))
    assert [p.name for p in out.rglob("*")] == ["model", "mine.txt"]


def test_a_validation_set_of_nothing_ends_in_words_and_the_model_is_kept(tiny: Settings, pictures: Path, caplog):
    void = shutil.copytree(pictures, Path(tiny.out).parent / "void")
    for file in (void / "val" / "labels").iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(file)
    with caplog.at_level("INFO", "fapn_zoo"):
        folder = train(tiny.replace(steps=1, val_data=str(void)))
    assert (folder / "model.safetensors").exists()
    assert (
        "nothing to score: void, to evaluate on, has no pixel of any class; there will be no scores" in caplog.messages
    )
    assert "step 1: nothing is scored: void val has no pixel of a class that is scored" in caplog.messages


@pytest.mark.parametrize(
    "options, said",
    [
        ({"steps": 1}, "step 1: the output for .* is not finite .*; training has diverged: try an lr below 1e"),
        ({"steps": 4}, "step 1: the loss is not finite: .* or clip_norm=1"),
        ({"steps": 4, "eval_every": 1}, "step 1: the output for .* is not finite"),
        ({"steps": 1, "val_data": "none"}, "perpixel_fpn is not saved to .*: its outputs on a small image hold"),
    ],
)
def test_a_run_that_diverges_ends_in_one_line(tiny: Settings, options: dict, said: str):
    settings = tiny.replace(lr=1e36, optimizer="sgd", **options)
    with pytest.raises(ValueError, match=said):
        train(settings)
    assert not (Path(settings.out) / "model").exists() and not (Path(settings.out) / "eval.json").exists()


def test_a_gradient_that_is_not_finite_names_the_step(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    real = loop.Run._backward

    def broken(self, parts, totals):
        sums = real(self, parts, totals)
        if self.step == 3:
            self.trainable[0].grad.flatten()[0] = math.nan
        return sums

    monkeypatch.setattr(loop.Run, "_backward", broken)
    with pytest.raises(ValueError, match="step 3: the gradient is not finite, its norm is nan; .* a clip_norm below 1"):
        train(tiny.replace(clip_norm=1.0))


@pytest.mark.parametrize("where", ["weights.neck", "weights.backbone.*running_var", "optimizer.*exp_avg", "ema.head"])
def test_the_last_good_checkpoint_is_kept(tiny: Settings, monkeypatch: pytest.MonkeyPatch, where: str):
    """What became NaN after the loss was looked at reaches neither a checkpoint nor OUT/model."""
    real = loop.Run._descend

    def broken(self):
        rate = real(self)
        if self.step == 5:  # the sixth update
            state = {"weights": self.plain.state_dict(), "ema": self.ema.means}
            state["optimizer"] = self.optimizer.state_dict()["state"]
            tensors = dict(named_tensors(state))
            next(value for name, value in tensors.items() if re.match(where, name)).flatten()[:1] = math.inf
        return rate

    monkeypatch.setattr(loop.Run, "_descend", broken)
    settings = tiny.replace(steps=6, checkpoint_every=5, ema=0.5)
    with pytest.raises(ValueError, match=f"^perpixel_fpn, step 6: what was learned is not finite: inf in {where}"):
        train(settings)
    assert [path.name for path in Path(settings.out, "checkpoint").iterdir()] == ["step-00000005"]
    assert not Path(settings.out, "model").exists()


def test_logs_hold_no_number_that_json_has_not(tmp_path: Path):
    log = loop.RunLog(tmp_path, Settings(log_every=1), 0, True, {"steps": 0, "sums": {}})
    with pytest.raises(ValueError, match="cannot write .*log.jsonl: .*JSON"):
        log.add(1, {"loss": 1.0, "lr": math.inf}, 0.0, last=False)
    log.close()


def test_revision_and_licence_of_the_data_go_into_folder_and_card(tiny: Settings, monkeypatch: pytest.MonkeyPatch):
    from fapn_zoo.data.folders import FolderDataset

    facts = {"revision": "5" * 40, "license": "cc-by-nc-4.0"}
    monkeypatch.setattr(FolderDataset, "facts", facts, raising=False)
    folder = train(tiny.replace(steps=1, val_data="none"))
    told = json.loads((folder / "config.json").read_text())["training"]
    assert {name: told[f"data_{name}"] for name in facts} == facts
    assert "| data_license | cc-by-nc-4.0 |" in (folder / "README.md").read_text()
