"""Weights into models without initialising them first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fapn_zoo
from fapn_zoo.model import build
from fapn_zoo.weights.folder import WithoutInit, assign_tensors, load_weights
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
