"""When Triton computes deformable convolution on a GPU: the choice alone, which needs none."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fapn_zoo.modules.deform_conv import backends, conv
from fapn_zoo.modules.deform_conv.conv import active_backend, available_backends, deform_conv_backend
from fapn_zoo.runtime import compilers

pytestmark = pytest.mark.unit

TRITON_STARTS = compilers.triton_starts.__wrapped__


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the choice sees on a machine with a Hopper GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    monkeypatch.setattr(compilers, "triton_starts", lambda: True)


def test_triton_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs triton")
    assert available_backends() == ["auto", "reference", "numba", "triton"]
    with deform_conv_backend("auto"):
        assert active_backend("cuda:0") == "triton" and active_backend("cpu") == "numba"
        assert backends.resolve("auto", "cuda", 0, torch.float64) == "reference"
        assert backends.resolve("auto", "cuda", 0, torch.bfloat16, well_filled=False) == "reference"
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (7, 5))
        assert active_backend("cuda") == "reference"
    with deform_conv_backend("triton"):
        assert backends.resolve("triton", "cuda", 0, torch.bfloat16, well_filled=False) == "triton"
        with pytest.raises(ValueError, match="'triton', chosen by FAPN_ZOO_DEFORM_CONV .* runs on cuda, not on cpu"):
            active_backend("cpu")
        with pytest.raises(ValueError, match="float16, not float64"):
            backends.resolve("triton", "cuda", 0, torch.float64)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "triton_works", functools.cache(backends.triton_works.__wrapped__))
    monkeypatch.setitem(sys.modules, "triton", None)
    assert available_backends() == ["auto", "reference", "numba"]
    with deform_conv_backend("auto"):
        assert active_backend("cuda") == "reference"
    with deform_conv_backend("triton"), pytest.raises(ValueError, match="triton is missing"):
        active_backend("cuda")


def test_triton_that_cannot_start_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where there is no C compiler: Triton builds with it what starts its kernels."""
    build = pytest.importorskip("triton.runtime.build", reason="needs triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)

    class Driver:
        @property
        def utils(self) -> Any:
            return build._build("utils", "utils.c", str(tmp_path), [], [], [], [])

    monkeypatch.setattr("triton.runtime.driver._active", Driver())
    monkeypatch.setattr(compilers, "triton_starts", functools.cache(TRITON_STARTS))
    with deform_conv_backend("auto"), pytest.warns(UserWarning, match="triton cannot be used.*C compiler"):
        assert active_backend("cuda") == "reference"
    assert "triton" not in available_backends()
    with deform_conv_backend("triton"), pytest.raises(ValueError, match="triton is missing or broken"):
        active_backend("cuda")


@pytest.mark.parametrize("group_channels, out_channels, filled", [(256, 256, True), (16, 8, True), (1, 8, False)])
def test_thin_groups_are_not_for_triton(group_channels: int, out_channels: int, filled: bool) -> None:
    groups = 256 // group_channels
    input, offset = torch.empty(1, 256, 4, 4, device="meta"), torch.empty(1, 8 * 18, 4, 4, device="meta")
    weight = torch.empty(groups * out_channels, group_channels, 3, 3, device="meta")
    assert conv._fills_blocks(input, offset, weight) == filled
