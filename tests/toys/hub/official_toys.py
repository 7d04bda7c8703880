"""Two small models with official releases: a `.pkl` on the file server of MaskFormer, a `.pth` on Google Drive."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from toys.golden_rule import fill
from toys.official_names import to_official

import fapn_zoo
from fapn_zoo import DataSpec, ModelSpec, cli
from fapn_zoo.convert import to_zoo
from fapn_zoo.weights.digests import file_digest
from fapn_zoo.weights.folder import read_tensors
from fapn_zoo.zoo.registry import register_model
from fapn_zoo.zoo.spec import WeightsSpec

HTTPS, DRIVE = "perpixel_fpn_toy", "maskformer_fapn_toy"
URL = "https://dl.fbaipublicfiles.com/maskformer/semantic-toy/{run}/model_final_{md5}.pkl"
DRIVE_ID = "1ToyToyToyToyToyToyToyToyToyToyTo"

# One bottleneck per stage and a quarter of the width: the official names, at some megabytes.
_BACKBONE = {"backbone_norm": "frozen_bn", "backbone_layers": (1, 1, 1, 1), "backbone_channels": (16, 32, 64, 256)}
_NARROW = {"neck_out_channels": 32, "head_mask_channels": 32}
_DECODER = {"head_num_queries": 7, "head_channels": 32, "head_layers": 2, "head_feedforward": 48}
Toys = dict[str, tuple[ModelSpec, bytes, dict[str, Tensor]]]  # name -> model, released file, official tensors
_LABELS = DataSpec(labels=("sky", "road", "tree"), palette=((0, 0, 255), (99, 99, 99), (0, 128, 0)))


def official_state(spec: ModelSpec) -> dict[str, Tensor]:
    """The model's official tensors, filled by the goldens' rule; what the rule leaves alone stays as it was made."""
    made = to_official(fapn_zoo.create_model(spec.name).state_dict(), spec)
    return made | fill({key: tuple(value.shape) for key, value in made.items()})


def as_pkl(state: Mapping[str, Tensor]) -> bytes:
    """The container of detectron2's model zoo: a pickled dict of numpy arrays."""
    return pickle.dumps({"model": {key: value.numpy() for key, value in state.items()}, "__author__": "tests"})


def as_pth(state: Mapping[str, Tensor]) -> bytes:
    """The container of detectron2's trainer: torch.save, with the state of optimizer and schedule beside the model."""
    momenta = {0: {"step": torch.tensor(60000.0), "exp_avg": torch.zeros(3, 4), "exp_avg_sq": torch.zeros(3, 4)}}
    optimizer = {"state": momenta, "param_groups": [{"lr": 1e-6, "betas": (0.9, 0.999), "params": [0]}]}
    schedule = {"base_lrs": [1e-4], "last_epoch": 60000, "_last_lr": [0.0], "power": 0.9}
    file = io.BytesIO()
    torch.save({"model": dict(state), "optimizer": optimizer, "scheduler": schedule, "iteration": 59999}, file)
    return file.getvalue()


def released(spec: ModelSpec, data: bytes, drive_id: str | None = None, run: str = "toy") -> ModelSpec:
    """The model with `data` as its released weights, under a name that carries the file's md5, or on Google Drive."""
    if drive_id is None:
        location = URL.format(run=run, md5=hashlib.md5(data).hexdigest()[:6])
        page, terms = "https://github.com/facebookresearch/MaskFormer/blob/main/MODEL_ZOO.md", "cc-by-nc-4.0"
    else:
        location, page, terms = f"gdrive:{drive_id}", "https://github.com/ShihuaHuang95/FaPN-full", "none-stated"
    weights = WeightsSpec("official", location, license=terms, metrics={"Toy val mIoU": 12.5}, page=page)
    return register_model(dataclasses.replace(spec, weights={"paper": weights}), overwrite=True)


def register_toys() -> Toys:
    """Registers both toys."""
    specs = [
        ModelSpec(HTTPS, "perpixel", "fpn", "resnet50", 3, args=_BACKBONE | _NARROW, data=_LABELS),
        ModelSpec(DRIVE, "maskformer", "fapn", "resnet50", 3, args=_BACKBONE | _NARROW | _DECODER, data=_LABELS),
    ]
    toys = {}
    for spec in specs:
        register_model(spec, overwrite=True)
        state = official_state(spec)
        data = as_pkl(state) if spec.name == HTTPS else as_pth(state)
        toys[spec.name] = released(spec, data, DRIVE_ID if spec.name == DRIVE else None), data, state
    return toys


def zoo_tensors(toy: tuple[ModelSpec, bytes, dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a model of the toy is to hold."""
    return to_zoo(toy[2], toy[0])[0]


def assert_whole(folder: Path, toy: tuple[ModelSpec, bytes, dict[str, Tensor]]) -> None:
    """The folder holds the toy's weights to the bit, and its record is true."""
    expected, found = zoo_tensors(toy), read_tensors(folder / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[k], v) for k, v in expected.items())
    record = json.loads((folder / "record.json").read_text())
    assert record["sha256"] == file_digest(folder / "model.safetensors")


def cached(tmp_path: Path, name: str) -> Path:
    return tmp_path / "cache" / "official" / f"{name}.paper"


def parts(tmp_path: Path) -> list[Path]:
    """What is left in the cache of downloads and conversions."""
    return [path for path in tmp_path.glob("cache/official/.*.partial/**/*") if path.is_file()]


def predict(photo: Path, name: str, tmp_path: Path) -> int:
    """The exit code of `fapn-zoo predict`."""
    return cli.main(["predict", str(photo), "--model", name, "--out", str(tmp_path / "out"), "--device", "cpu"])
