"""Names, sources, keyword arguments and the errors that answer wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import fapn_zoo
from fapn_zoo import DataSpec, ModelSpec
from fapn_zoo.zoo.parts import HEADS, NECKS, stands_on
from fapn_zoo.zoo.registry import _registered, get_spec, natural_key

pytestmark = pytest.mark.unit

TINY = {
    "backbone": "resnet10t",
    "backbone_channels": (8, 8, 16, 16),
    "num_classes": 4,
    "neck_out_channels": 16,
    "neck_deform_groups": 2,
}


def tiny(**kwargs):
    return fapn_zoo.create_model("perpixel_fapn", **(TINY | kwargs))


def test_listing_needs_no_torch_and_little_time():
    code = (
        "import sys, time; t = time.perf_counter(); import fapn_zoo; names = fapn_zoo.list_models('*fapn*');"
        "assert names; print(time.perf_counter() - t, 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    best = min(
        (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
            for _ in range(3)
        ),
        key=lambda words: float(words[0]),
    )
    assert best[1:] == ["False", "False"]
    assert float(best[0]) < 0.3


def test_wildcards_order_and_filters():
    names = fapn_zoo.list_models("maskformer_fapn_*ade20k")
    assert names == sorted(names, key=natural_key)
    assert names.index("maskformer_fapn_resnet50_ade20k") < names.index("maskformer_fapn_resnet101_ade20k")
    assert len(names) == 6
    assert fapn_zoo.list_models(["perpixel_fpn_swin*", "maskformer_fpn_swin_t*"]) == [
        "maskformer_fpn_swin_t_ade20k",
        "maskformer_fpn_swin_t_coco_panoptic",
        *[f"perpixel_fpn_swin_{s}_ade20k" for s in "blst"],
    ]
    by_task = {task: fapn_zoo.list_models(task=task) for task in ("semantic", "panoptic", "instance", "detection")}
    assert sorted(sum(by_task.values(), []), key=natural_key) == fapn_zoo.list_models()
    by_task = {task: [name for name in names if "eomt" not in name] for task, names in by_task.items()}
    assert all(name.startswith("panoptic_") or name.endswith("_panoptic") for name in by_task["panoptic"])
    assert all("faster_rcnn" in name for name in by_task["detection"])
    assert all("mask_rcnn" in name or "pointrend_rcnn" in name for name in by_task["instance"])
    assert fapn_zoo.list_models("nothing*") == []
    assert all(get_spec(name)[0].weights for name in fapn_zoo.list_models(pretrained=True))


def test_issue_names_are_there():
    wanted = (
        {
            f"{head}_{neck}_{backbone}_ade20k"
            for head in ("maskformer", "perpixel")
            for neck in ("fapn", "fpn")
            for backbone in ("resnet50", "resnet101", "swin_t", "swin_s", "swin_b", "swin_l")
        }
        | {"maskformer_fapn_resnet101_cocostuff10k"}
        | {f"perpixel_fapn_{b}_{d}" for b in ("resnet18", "resnet34") for d in ("cityscapes", "cocostuff10k")}
    )
    assert wanted <= set(fapn_zoo.list_models())


def test_architecture_of_any_backbone():
    spec, _ = get_spec("perpixel_fapn_convnextv2_atto")
    assert (spec.head, spec.neck, spec.backbone, spec.num_classes) == ("perpixel", "fapn", "convnextv2_atto", None)
    assert get_spec("maskformer_fam_se_resnet50")[0].neck == "fam_se"
    assert get_spec("maskformer_fam_noref_fsm_swin_t")[0].neck == "fam_noref_fsm"


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "maskformer_fapn_resnet50_ade2k",
            r"unknown model 'maskformer_fapn_resnet50_ade2k'; nearest: maskformer_fapn_res",
        ),
        ("zzz", "unknown model 'zzz'"),
        ("perpixel_fapn_resnet50_ade20k.paper", "has no weights 'paper'"),
        ("runs/x", "'runs/x' is no model name; folders are given as 'local-dir:PATH'"),
        ("ftp:x", "'ftp:x' is no model name"),
        ("maskformer_fapn", "is an architecture: pass backbone="),
        ("maskformer_fapn_resnet18", "has no label set: pass num_classes="),
        ("hf-hub:onlyname", "Hub repository 'onlyname'; expected 'owner/name'"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ValueError, match=message):
        fapn_zoo.create_model(name)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"neck_norms": "gn"}, r"unknown argument 'neck_norms' for 'perpixel_fapn'; nearest: neck_norm"),
        ({"queries": 5}, "unknown argument 'queries'"),
        ({"head_num_queries": 5}, "unknown argument 'head_num_queries'"),
        ({"backbone_name": "x"}, "unknown argument 'backbone_name'"),
        ({"neck": "bifpn"}, "unknown neck 'bifpn'; expected one of fpn, fapn"),
        ({"backbone": "resnett18"}, "unknown backbone 'resnett18'; nearest: resnet18"),
        ({"num_classes": 0}, "num_classes=0; expected a whole number of 1 or more"),
        ({"in_chans": 2.5}, "in_chans=2.5"),
        ({"neck_norm": "in"}, "norm 'in'; expected one of gn, gn8, bn, ln, none"),
        ({"neck_deform_groups": 3}, "16 channels cannot be split into 3 deformable groups"),
        ({"neck_align": "x"}, "align 'x'; expected one of fam, dcn, deconv"),
        ({"neck_select": "x"}, "select 'x'; expected one of fsm, se, none"),
        ({"neck_dialect": "x"}, "dialect 'x'; expected one of detectron2, maskformer"),
        ({"pretrained": True}, "has no released weights"),
        ({"data": DataSpec(labels=("a", "b"))}, "num_classes=4, but data has 2 labels"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(**kwargs)


def test_pretrained_and_backbone_exclude_each_other():
    with pytest.raises(ValueError, match="choose it or pretrained_backbone"):
        fapn_zoo.create_model("perpixel_fapn_resnet18", True, pretrained_backbone=True, num_classes=2)


def test_labels_travel_with_the_name():
    with torch.device("meta"):
        model = fapn_zoo.create_model("perpixel_fapn_resnet18_cityscapes")
        other = fapn_zoo.create_model("perpixel_fapn_resnet18_cityscapes", num_classes=3)
    assert model.data.labels[0] == "road" and len(model.data.palette) == 19 and model.data.things
    assert other.data.labels == () and other.num_classes == 3
    assert other.data.test_size == model.data.test_size


def test_data_gives_the_number_of_classes():
    model = tiny(num_classes=None, data=DataSpec(labels=("a", "b", "c"), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2))))
    assert model.num_classes == 3 and model.head.predictor.out_channels == 3


def test_register_model():
    spec = ModelSpec("my_street_model", "perpixel", "fpn", "resnet10t", num_classes=2, args={"neck_out_channels": 8})
    try:
        fapn_zoo.register_model(spec)
        assert "my_street_model" in fapn_zoo.list_models("my_*")
        assert fapn_zoo.create_model("my_street_model").neck.out_channels == 8
        with pytest.raises(ValueError, match="'my_street_model' exists already"):
            fapn_zoo.register_model(spec)
        fapn_zoo.register_model(spec, overwrite=True)
    finally:
        _registered.clear()
    good = {"name": "n", "head": "perpixel", "neck": "fpn"}
    wrong = [({"name": "a.b"}, "only letters"), ({"head": "x"}, "head 'x'"), ({"neck": "x"}, "neck 'x'")]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            fapn_zoo.register_model(ModelSpec(**(good | change)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("neck", NECKS)
def test_every_pair_of_head_and_neck_is_built(head, neck):
    if not stands_on(head, neck):
        with pytest.raises(ValueError, match=f"unknown model '{head}_{neck}'"):
            fapn_zoo.create_model(f"{head}_{neck}", backbone="resnet18", num_classes=2)
        return
    with torch.device("meta"):
        backbone = "vit_tiny_patch16_224" if neck == "none" else "resnet18"
        fapn_zoo.create_model(f"{head}_{neck}", backbone=backbone, num_classes=2)


def test_frozen_norms_are_no_parameters():
    with torch.device("meta"):
        frozen = fapn_zoo.create_model("perpixel_fapn_resnet50_ade20k")
        free = fapn_zoo.create_model("perpixel_fapn_resnet50", num_classes=150)
    names = dict(frozen.backbone.named_parameters())
    assert not any(".bn" in name for name in names)
    assert any(".bn" in name for name in dict(free.backbone.named_parameters()))


class TestWeightsFolders:
    """What a folder may hold, and what is refused with one line that names the file."""

    @pytest.fixture
    def folder(self, tmp_path):
        tiny().save(tmp_path / "weights", license="mit", metrics={"mIoU": 12.5})
        return tmp_path / "weights"

    def test_contents(self, folder):
        assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        config = json.loads((folder / "config.json").read_text())
        assert config["license"] == "mit" and config["metrics"] == {"mIoU": 12.5} and "torch" in config["versions"]
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: fapn-zoo") and "license: mit" in card and "12.50" in card

    def test_half_precision_is_stored_and_read(self, tmp_path):
        model = tiny()
        model.save(tmp_path, dtype=torch.float16)
        assert load_file(tmp_path / "model.safetensors")["head.predictor.weight"].dtype == torch.float16
        again = fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert again.head.predictor.weight.dtype == torch.float32
        assert torch.equal(again.head.predictor.weight, model.head.predictor.weight.half().float())

    def test_without_pretrained_only_the_description_is_read(self, folder):
        (folder / "model.safetensors").unlink()
        assert fapn_zoo.create_model(f"local-dir:{folder}").num_classes == 4
        with pytest.raises(FileNotFoundError, match="no weights file .*model.safetensors"):
            fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)

    def test_missing_folder_and_config(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no weights folder"):
            fapn_zoo.create_model(f"local-dir:{tmp_path / 'no'}")
        with pytest.raises(FileNotFoundError, match="has no config.json"):
            fapn_zoo.create_model(f"local-dir:{tmp_path}")

    def test_a_config_with_a_byte_order_mark(self, folder):
        file = folder / "config.json"
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
        assert fapn_zoo.create_model(f"local-dir:{folder}").num_classes == 4

    @pytest.mark.parametrize(
        "text, message",
        [
            ("{", "config.json is not readable JSON"),
            ("{}", "has no 'model' entry"),
            ('{"model": {}, "format": 9}', "has format 9, this version reads 1"),
            ('{"model": {"name": "x"}, "format": 1}', "config.json: the model description lacks head"),
            ('{"model": {"name": "x", "colour": 1}, "format": 1}', "config.json: unknown ModelSpec keys"),
        ],
    )
    def test_bad_config(self, folder, text, message):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)

    def test_corrupted_safetensors(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
            fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
        file.write_bytes(b"")
        with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
            fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_pickle_is_refused_and_not_run(self, folder, zipped):
        marker = folder / "ran"

        class Evil:
            def __reduce__(self):
                import pathlib

                return (pathlib.Path.touch, (marker,))

        torch.save({"x": Evil()}, folder / "model.safetensors", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="is a pickle, which can run code"):
            fapn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
        with pytest.raises(ValueError, match="is a pickle, which can run code"):
            tiny(checkpoint_path=folder / "model.safetensors")
        assert not marker.exists()

    def test_checkpoint_path_is_strict(self, folder):
        tiny(checkpoint_path=folder)
        with pytest.raises(ValueError, match=r"head.predictor.weight has shape \(4, .*the model \(7,"):
            tiny(checkpoint_path=folder, num_classes=7)
        tensors = load_file(folder / "model.safetensors")
        tensors["extra"] = tensors.pop("neck.top.conv.weight")
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(ValueError, match="neck.top.conv.weight is missing; extra is unexpected"):
            tiny(checkpoint_path=folder / "model.safetensors")

    def test_saving_over_a_folder_keeps_it_whole(self, folder, monkeypatch):
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        monkeypatch.setattr(
            "fapn_zoo.weights.folder.render_card", lambda *a: (_ for _ in ()).throw(OSError("disk full"))
        )
        with pytest.raises(OSError, match="disk full"):
            tiny().save(folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_public_names_exist():
    assert set(fapn_zoo.__all__) <= set(dir(fapn_zoo))
    assert all(callable(getattr(fapn_zoo, name)) for name in fapn_zoo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'unet'"):
        _ = fapn_zoo.unet


def test_import_time_of_the_command_line():
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fapn_zoo.cli", "list", "maskformer_fapn*"], capture_output=True, text=True, check=True
    )
    assert "maskformer_fapn_swin_l_ade20k" in done.stdout
    assert time.perf_counter() - start < 5
