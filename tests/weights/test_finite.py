"""NaN and infinity are found in whatever holds tensors, and finite numbers never taken for them."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fapn_zoo.weights.finite import NotFinite, check_finite, faults, faults_of_model, named_tensors, told

pytestmark = pytest.mark.unit
NAN, INF = float("nan"), float("inf")


class Raw(NamedTuple):
    logits: Tensor
    aux: tuple[Any, ...] = ()
    stride: int = 4


@dataclasses.dataclass
class Boxes:
    scores: Tensor
    parts: dict[str, Tensor]


class Plain:
    def __init__(self) -> None:
        self.masks = torch.zeros(2)


def test_tensors_of_any_output_have_names():
    one = torch.zeros(1)
    assert dict(named_tensors(one, "x")) == {"x": one}
    assert [name for name, _ in named_tensors(Raw(one, ((one, one), one)))] == ["logits", "aux.0.0", "aux.0.1", "aux.1"]
    assert [name for name, _ in named_tensors(Boxes(one, {"a": one}), "boxes")] == ["boxes.scores", "boxes.parts.a"]
    assert [name for name, _ in named_tensors([Plain(), 3, "word", None, nn.Linear(1, 1)])] == ["0.masks"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_both_kinds_are_told_apart(dtype: torch.dtype):
    values = torch.ones(3, 4, dtype=dtype)
    assert faults([("a", values)]) == {}
    for bad, kinds in ((NAN, ["NaN"]), (INF, ["inf"]), (-INF, ["inf"])):
        broken = values.clone()
        broken[2, 1] = bad
        assert list(faults([("a", broken)])) == kinds
    broken[0, 0], broken[1, 1] = INF, -INF  # whose sum is NaN, while neither is
    assert list(faults([("a", broken)])) == ["inf"]


def test_sums_that_overflow_are_no_fault():
    largest = torch.full((1000,), torch.finfo(torch.float16).max, dtype=torch.float16)
    assert largest.sum().isinf() and faults([("half", largest), ("single", largest.float() * 5e33)]) == {}
    assert faults([("ids", torch.tensor([1, 2])), ("mask", torch.tensor([True])), ("none", torch.empty(0))]) == {}


def test_up_to_five_names_each():
    broken = [(f"layer{i}", torch.tensor([NAN])) for i in range(8)] + [("gate", torch.tensor([INF]))]
    assert told(faults(broken)) == "NaN in layer0, layer1, layer2, layer3, layer4 and 3 more; inf in gate"
    with pytest.raises(NotFinite, match=r"^the weights of x hold NaN in layer0$"):
        check_finite(broken[:1], "the weights of x")


def test_weights_are_looked_at_again_once_they_are_written_to():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    model.register_buffer("mask", torch.tensor([-INF]), persistent=False)  # as attention masks have it
    assert faults_of_model(model) == {} == faults_of_model(model)
    with torch.no_grad():
        model[0].weight.fill_(NAN)
    assert faults_of_model(model) == {"NaN": ["0.weight"]} == faults_of_model(model)
    model[0] = nn.Conv2d(1, 1, 1)
    assert faults_of_model(model) == {}
    model[1].running_var.fill_(INF)
    assert faults_of_model(model) == {"inf": ["1.running_var"]}
    with torch.inference_mode():
        made = nn.Linear(1, 1)
        assert faults_of_model(made) == {}
        made.bias.fill_(NAN)
        assert faults_of_model(made) == {"NaN": ["bias"]}
