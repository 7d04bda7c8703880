"""Parameters, inputs and stored outputs of the golden models: the official code's numbers for weights made by a rule.

No official weights are needed: each tensor is random numbers seeded by its official name, so any implementation can
make the same network and must give the stored outputs. The small ones lie in ``tests/goldens``; the others in the
folder that FAPN_ZOO_GOLDENS names, or in ``../shared/goldens`` beside the repository. Tests that ask for a
:class:`Golden` which is in neither are skipped.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from functools import cached_property
from math import prod, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

# left as the official constructors make them
_NOT_FILLED = ("relative_position_index", "num_batches_tracked", "pixel_mean", "pixel_std", "criterion.empty_weight")
# one shared norm has two names in FaPN's MaskFormer; its numbers are seeded by the second
_SHARED_NORM = re.compile(r"align_(\d)\.offset\.norm\.")
# the R-CNN family does not divide its images by a deviation, so its stem is scaled down instead
_UNSCALED_STEM = "backbone.bottom_up.stem.conv1.weight"
NOISE_FACTOR = 20


def fill_one(key: str, shape: tuple[int, ...]) -> Tensor:
    """The float32 tensor that the rule gives an official key."""
    seed = zlib.crc32(_SHARED_NORM.sub(r"layer_\1.norm.", key).encode())
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if key.endswith("running_var"):
        return (noise.abs() / 2 + 0.5).clamp(0.5, 1.5)
    if key.endswith(("running_mean", "bias", "relative_position_bias_table")):
        return noise * 0.1
    if key.endswith("query_embed.weight"):
        return noise
    if len(shape) > 1:
        return noise / sqrt(prod(shape[1:])) / (64 if key == _UNSCALED_STEM else 1)
    return (1 + 0.1 * noise) * (0.5 if key.endswith("conv3.norm.weight") else 1)


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The rule's tensors for official keys and shapes; keys that the rule leaves alone are absent."""
    return {
        key: fill_one(key, tuple(shape))
        for key, shape in shapes.items()
        if not key.endswith(_NOT_FILLED) and "cell_anchors." not in key
    }


def image(height: int, width: int) -> Tensor:
    """The golden input ``(3, height, width)``: values 0..255 in the channel order of the model."""
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).float()


class Golden:
    """One golden model: ``meta.json``, ``keys.json`` and the stored outputs."""

    def __init__(self, name: str):
        root = Path(__file__).resolve().parents[2]
        elsewhere = Path(os.environ.get("FAPN_ZOO_GOLDENS", root.parent / "shared" / "goldens"))
        found = [folder / name for folder in (root / "tests" / "goldens", elsewhere) if (folder / name).is_dir()]
        if not found:
            pytest.skip(f"golden outputs of {name} not found in {elsewhere}: set FAPN_ZOO_GOLDENS to their folder")
        self.folder = found[0]
        self.meta = json.loads((self.folder / "meta.json").read_text())

    @cached_property
    def keys(self) -> dict[str, dict]:
        """Official key -> its "shape" and "dtype"."""
        return json.loads((self.folder / "keys.json").read_text())

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Official key -> shape."""
        return {key: tuple(entry["shape"]) for key, entry in self.keys.items()}

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """Filled tensors of the official keys that begin with ``prefix``, names without it."""
        chosen = {key: shape for key, shape in self.shapes.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): value for key, value in fill(chosen).items()}

    def network_input(self, size: tuple[int, int] | None = None) -> Tensor:
        """The normalised and padded batch ``(1, 3, H, W)`` of an image of ``size``; None: the stored one."""
        spec = self.meta["input"]
        pixels = image(*(size or spec["H_W"]["outputs.npz"]))
        mean, std = (torch.tensor(spec[key]).view(3, 1, 1) for key in ("mean", "std"))
        divisor = spec["size_divisibility"] or 1
        padding = (0, -pixels.shape[2] % divisor, 0, -pixels.shape[1] % divisor)
        return torch.nn.functional.pad((pixels - mean) / std, padding)[None]

    def noise(self, name: str) -> float:
        """The rounding noise of a stored output: how far the official model is from itself in double precision."""
        return self.meta["outputs"]["outputs.npz"][name]["fp32_vs_fp64_max_abs_diff"]

    def check(self, name: str, value: Tensor) -> float:
        """Asserts that ``value`` is the stored output within `NOISE_FACTOR` times its noise.

        Returns:
            The largest difference.
        """
        entry = self.meta["outputs"]["outputs.npz"][name]
        assert list(value.shape) == entry["full_shape"], f"{name}: {tuple(value.shape)}, official {entry['full_shape']}"
        with np.load(self.folder / "outputs.npz") as stored:
            expected = torch.from_numpy(stored[name])
        sampled = value.detach()[tuple(slice(None, None, step) for step in entry["strides"])]
        difference, noise = (sampled - expected).abs().max().item(), self.noise(name)
        assert difference <= NOISE_FACTOR * noise, f"{name}: differs by {difference:.3g}, the noise is {noise:.3g}"
        return difference


def record(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """A dict that the modules' outputs are written into when they run."""
    outputs: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda m, args, out, name=name: outputs.__setitem__(name, out))
    return outputs
