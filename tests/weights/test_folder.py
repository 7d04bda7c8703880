"""Weights into models without initialising them first."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import fapn_zoo
from fapn_zoo.model import build
from fapn_zoo.runtime import files
from fapn_zoo.weights.folder import WithoutInit, assign_tensors, load_weights, read_config, save_model
from fapn_zoo.zoo.registry import get_spec

pytestmark = pytest.mark.unit

NAMES = ["maskformer_fapn_swin_t_ade20k", "perpixel_fapn_resnet18_cityscapes", "perpixel_plus_fpn_resnet50_ade20k"]


def test_nothing_is_drawn_and_no_value_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building for weights leaves torch's generator as it was: no parameter was filled with random numbers."""
    for name in NAMES:
        spec = get_spec(name)[0]
        before = torch.get_rng_state()
        model = build(spec, empty=True)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(p.device.type == "cpu" for p in model.parameters())


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_assigned_models_equal_plain_ones(name: str, share: bool) -> None:
    """Everything that is not in the weights (windows' indices and masks) is as in a model built the plain way."""
    torch.manual_seed(0)
    plain = build(get_spec(name)[0]).eval()
    fast = build(get_spec(name)[0], empty=True).eval()
    assign_tensors(fast, plain.state_dict(), "here", share=share)
    assert [k for k, _ in fast.named_buffers()] == [k for k, _ in plain.named_buffers()]
    assert all(torch.equal(a, b) for a, b in zip(fast.buffers(), plain.buffers(), strict=True))
    assert [p.requires_grad for p in fast.parameters()] == [p.requires_grad for p in plain.parameters()]
    x = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        ours, theirs = fast(x), plain(x)
    tensors = [pair for pair in zip(ours, theirs, strict=True) if torch.is_tensor(pair[0])]
    assert tensors and all(torch.equal(*pair) for pair in tensors)


def test_other_threads_build_whole_models_meanwhile() -> None:
    done = {}

    def build() -> None:
        torch.manual_seed(0)
        done["layer"] = nn.Linear(4, 4)

    with WithoutInit():
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    torch.manual_seed(0)
    assert torch.equal(done["layer"].weight, nn.Linear(4, 4).weight)


@pytest.mark.parametrize("share", [False, True])
def test_loaded_weights_can_be_trained_and_the_file_stays(tmp_path: Path, share: bool) -> None:
    model = fapn_zoo.create_model("perpixel_fapn_resnet18_slim_camvid")
    model.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = build(model.spec, empty=True).train()
    load_weights(model, tmp_path, share=share)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
    optimizer.step()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    model.save(tmp_path)  # onto the file that its own tensors came from
    again = fapn_zoo.create_model(f"local-dir:{tmp_path}", pretrained=True).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("head.predictor.bias"), "head.predictor.bias is missing"),
        (lambda s: s.update(more=torch.zeros(1)), "more is unexpected"),
        (lambda s: s.update({"head.predictor.bias": torch.zeros(3)}), r"has shape \(3,\), the model \(11,\)"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[dict[str, Tensor]], Any], words: str) -> None:
    model = fapn_zoo.create_model("perpixel_fapn_resnet18_slim_camvid")
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(ValueError, match=f"FILE does not fit the model: .*{words}"):
        assign_tensors(build(model.spec, empty=True), state, "FILE")


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("norm", [None, "frozen_bn"])
def test_norms_may_be_frozen_or_thawed(norm: str | None, share: bool) -> None:
    """Frozen ones have no counter of batches; all else is loaded, and computes the same."""
    options = {"backbone": "resnet10t", "num_classes": 2, "neck_out_channels": 8}
    other = {None: "frozen_bn", "frozen_bn": None}[norm]
    saved = fapn_zoo.create_model("perpixel_fpn", **options, backbone_norm=norm).eval()
    model = fapn_zoo.create_model("perpixel_fpn", **options, backbone_norm=other).eval()
    for name, buffer in saved.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    assign_tensors(model, saved.state_dict(), "FILE", share=share)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, saved(x).logits)
    state = dict(saved.state_dict())
    del state["backbone.body.bn1.running_mean"]
    with pytest.raises(ValueError, match="bn1.running_mean is missing"):
        assign_tensors(model, state, "FILE", share=share)


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    options = {"backbone": "test_efficientnet", "num_classes": 2, "neck_out_channels": 8}
    return fapn_zoo.create_model("perpixel_fpn", **options).eval()


def killed_at(left: int, folder: Path, action: Callable[[], Any]) -> bool:
    """Does it in a process that is killed at its call of this number that changes files; False where it has fewer."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or status == 0
        return os.WIFSIGNALED(status)
    try:

        def note(event: str, arguments: tuple) -> None:
            nonlocal left
            if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(folder) in str(arguments[0]):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(note)
        action()
        os._exit(0)
    finally:
        os._exit(1)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_killed_write_leaves_no_mixture_of_two_models(small: nn.Module, tmp_path: Path) -> None:
    """Killed at every call that changes files: the old model, the new one, or a folder that says that it is neither."""
    place, found, tensors = tmp_path / "model", [], {}
    for count in range(1, 100):
        for source in ("old", "new"):
            with torch.no_grad():
                for parameter in small.parameters():
                    parameter.fill_(0.02 if source == "old" else 0.01)
            tensors[source] = {name: tensor.clone() for name, tensor in small.state_dict().items()}
            if source == "old":
                save_model(small, place, source=source)
                (place / "mine.txt").write_text("mine")
        killed = killed_at(count, place, lambda: save_model(small, place, source="new"))
        if (place / "config.json").exists():
            found.append(read_config(place)["source"])
            assert same(load_file(place / "model.safetensors"), tensors[found[-1]])
        else:
            with pytest.raises(FileNotFoundError, match="it has no config.json, but model.safetensors: was its writer"):
                fapn_zoo.create_model(f"local-dir:{place}", pretrained=True)
            found.append("none")
        files.remove_leavings(place, alone=True)
        assert not [path for path in place.iterdir() if path.name.startswith(".")]
        if not killed:
            break
    assert {"old", "none", "new"} == set(found) and found[-1] == "new"
    assert (place / "mine.txt").read_text() == "mine"


def test_a_full_disk_leaves_the_older_model(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(small, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = files._Target.finish
    for name in before:

        def finish(self: Any, sync: bool, name: str = name) -> None:
            if f".{name}." in self.file.name:
                self.error = OSError(122, "Disk quota exceeded")
            real(self, sync)

        monkeypatch.setattr(files._Target, "finish", finish)
        words = rf"^cannot write {tmp_path / name}: Disk quota exceeded; it needs {len(before[name])} bytes, "
        with pytest.raises(OSError, match=words):
            save_model(small, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_share_memory_are_written(small: nn.Module, tmp_path: Path) -> None:
    small.head.again = small.neck
    save_model(small, tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(small.state_dict())
        assert file.metadata() == {"format": "pt"}
