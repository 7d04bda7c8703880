"""Modes: models with loaded weights infer, new ones learn; and who is warned that batch norms change."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fapn_zoo
from fapn_zoo.model import ZooModel
from fapn_zoo.modules.heads.outputs import Targets

pytestmark = pytest.mark.unit
EMBEDDED = "perpixel_fapn_resnet18_slim_camvid"
TINY = {"neck_out_channels": 16, "neck_deform_groups": 2, "num_classes": 4}
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def tiny(folder: Path | None = None, backbone: str = "resnet10t", **options: Any) -> ZooModel:
    """A new model, or one whose weights were saved in a folder before."""
    model = fapn_zoo.create_model("perpixel_fapn", backbone=backbone, **TINY, **options)
    if folder is None:
        return model
    model.save(folder)
    return fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)


def warned(model: Any, *args: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model(X, *args)
    return [f"{Path(w.filename).name}: {w.message}" for w in seen if "training mode" in str(w.message)]


def test_only_loaded_weights_infer(tmp_path: Path):
    new, loaded = tiny(), tiny(tmp_path)
    assert new.training and new.load_report is None and all(m.training for m in new.modules())
    assert not any(m.training for m in loaded.modules()) and loaded.load_report.loaded > 0
    assert not fapn_zoo.create_model(EMBEDDED, pretrained=True).training
    assert not fapn_zoo.create_model(EMBEDDED, pretrained=True, num_classes=3, in_chans=1).training
    file = tmp_path / "all.safetensors"
    save_file({key: value.contiguous() for key, value in new.state_dict().items()}, file)
    assert not fapn_zoo.create_model("perpixel_fapn", backbone="resnet10t", **TINY, checkpoint_path=file).training
    assert fapn_zoo.create_model(f"local-dir:{tmp_path}").training  # the description alone
    assert "evaluation mode where its weights are loaded" in fapn_zoo.create_model.__doc__.splitlines()[0]


def test_three_raw_forwards_change_nothing(tmp_path: Path):
    model = tiny(tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    outputs = [model(X).logits for _ in range(3)]
    assert torch.equal(outputs[0], outputs[2])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_training_mode_warns_once_a_model(tmp_path: Path):
    model, other = tiny(tmp_path / "a").train(), tiny(tmp_path / "b").train()
    (words,) = warned(model)
    assert words.startswith("test_model.py: perpixel_fapn is in training mode") and "model.eval()" in words
    assert warned(model) == [] and len(warned(other)) == 1
    assert warned(copy.deepcopy(model)) == []


def test_who_is_not_warned(tmp_path: Path):
    truth = Targets(torch.zeros(2, 64, 64, dtype=torch.int64))
    assert warned(tiny()) == []  # new weights are there to be trained
    model = tiny(tmp_path / "a")
    assert warned(model) == []
    assert warned(model.train(), None, truth) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.train().predict(X[0].sigmoid())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert warned(model) == []  # its user has frozen what would change
    frozen = tiny(tmp_path / "b", backbone_norm="frozen_bn", neck_norm="gn").train()
    assert warned(frozen) == []
    without = tiny(tmp_path / "c", backbone="convnext_atto", neck_norm="gn").train()
    assert warned(without) == []
    assert len(warned(model.train())) == 1


def test_copies_hold_mode_and_weights_alone(tmp_path: Path):
    model = tiny(tmp_path)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not copied.training and copied.load_report == model.load_report
        assert torch.equal(copied(X).logits, model(X).logits)
    keys = list(model.state_dict())
    warned(model.train())
    assert list(model.state_dict()) == keys == list(tiny().state_dict())


def test_compiled_exported_and_traced_models_are_whole(tmp_path: Path):
    """The look at the mode is no graph break and no part of the graph."""
    model = tiny(tmp_path, backbone_norm="frozen_bn", neck_norm="gn").train()
    program = torch.export.export(model, (X,), strict=False)
    assert torch.allclose(program.module()(X).logits, model(X).logits, atol=1e-4)
    plain = tiny(tmp_path / "plain").train()
    assert warned(torch.compile(plain, backend="eager", fullgraph=True)) == []
    plain.requires_grad_(False)  # or tracing could not keep its weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*is in training mode.*")
        torch.jit.trace(lambda x: plain(x).logits, X, check_trace=False)
    assert len(warned(plain)) == 1


def test_data_parallel_training_does_not_warn(tmp_path: Path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(tiny(tmp_path / "m").train())
        assert warned(model, None, Targets(torch.zeros(2, 64, 64, dtype=torch.int64))) == []
    finally:
        torch.distributed.destroy_process_group()
