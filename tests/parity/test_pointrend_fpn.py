"""A second witness for PointRend with a plain FPN: torchvision's ResNet, and FACTS section 3 word by word.

It reads a state dict of official names and shares no code with the package.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d
from toys.golden_rule import fill, image
from toys.official_names import to_official

import fapn_zoo
from fapn_zoo.convert import to_zoo
from fapn_zoo.convert.names import model_shapes
from fapn_zoo.zoo.registry import get_spec

pytestmark = pytest.mark.parity
BODY = "backbone.bottom_up."
MEAN = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)  # of BGR


def backbone(state: dict[str, Tensor], x: Tensor) -> dict[int, Tensor]:
    """Level (logarithm of the stride) -> feature map; the stride of a block lies in its first convolution."""
    body = resnet50(norm_layer=FrozenBatchNorm2d).eval()
    names = {}
    for key in (key for key in state if key.startswith(BODY)):
        name = key.removeprefix(BODY).removeprefix("stem.").replace("conv1.norm", "bn1", 1 if ".stem." in key else 0)
        name = re.sub(r"res(\d)\.", lambda m: f"layer{int(m[1]) - 1}.", name)
        name = re.sub(r"conv(\d)\.norm", r"bn\1", name).replace("shortcut.norm", "downsample.1")
        names[name.replace("shortcut", "downsample.0")] = state[key]
    body.load_state_dict(names | {k: v for k, v in body.state_dict().items() if k.startswith("fc.")})
    for layer in (body.layer2, body.layer3, body.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
    found = {}
    for level in (2, 3, 4, 5):
        x = found[level] = getattr(body, f"layer{level - 1}")(x)
    return found


def pyramid(state: dict[str, Tensor], features: dict[int, Tensor]) -> dict[int, Tensor]:
    def conv(name: str, x: Tensor, padding: int) -> Tensor:
        return F.conv2d(x, state[f"backbone.{name}.weight"], state[f"backbone.{name}.bias"], padding=padding)

    found, flow = {}, 0
    for level in (5, 4, 3, 2):
        flow = conv(f"fpn_lateral{level}", features[level], 0) + flow
        found[level] = conv(f"fpn_output{level}", flow, 1)
        flow = F.interpolate(flow, scale_factor=2.0, mode="nearest")
    return found


def coarse_logits(state: dict[str, Tensor], levels: dict[int, Tensor]) -> Tensor:
    head, total = "sem_seg_head.coarse_sem_seg_head.", 0
    for level, x in levels.items():
        for step in range(max(1, level - 2)):
            name = f"{head}p{level}.{2 * step}"
            x = F.conv2d(x, state[f"{name}.weight"], padding=1)
            x = F.relu(F.group_norm(x, 32, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"]))
            if level > 2:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        total = total + x
    return F.conv2d(total, state[f"{head}predictor.weight"], state[f"{head}predictor.bias"])


def refined(state: dict[str, Tensor], coarse: Tensor, fine: Tensor) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        return F.conv1d(
            x, state[f"sem_seg_head.point_head.{name}.weight"], state[f"sem_seg_head.point_head.{name}.bias"]
        )

    logits = coarse
    for _ in range(2):
        logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
        height, width = logits.shape[2:]
        best = logits.flatten(2).sort(dim=1, descending=True).values
        places = (best[:, 0] - best[:, 1]).argsort(dim=1)[:, :8192]
        grid = torch.stack([(places % width + 0.5) / width, (places // width + 0.5) / height], dim=2) * 2 - 1
        read = [F.grid_sample(maps, grid[:, None], align_corners=False)[:, :, 0] for maps in (fine, coarse)]
        x = torch.cat(read, dim=1)
        for name in ("fc1", "fc2", "fc3"):
            x = F.relu(layer(name, x))
        flat = logits.flatten(2).clone()
        flat[0, :, places[0]] = layer("predictor", x)[0]
        logits = flat.view_as(logits)
    return logits


@pytest.mark.parametrize("size", [(256, 320), (250, 333), (97, 64)])
@torch.no_grad()
def test_pointrend_with_fpn(size: tuple[int, int]) -> None:
    spec = get_spec("pointrend_fpn_resnet50_cityscapes")[0]
    ours = {key: torch.empty(shape) for key, shape in model_shapes(spec).items()}
    state = fill({key: tuple(value.shape) for key, value in to_official(ours, spec).items()})
    model = fapn_zoo.create_model(spec.name).eval()
    model.load_state_dict(to_zoo(state, spec)[0])
    x = F.pad(image(*size) - MEAN, (0, -size[1] % 32, 0, -size[0] % 32))[None]
    levels = pyramid(state, backbone(state, x))
    expected = refined(state, coarse_logits(state, levels), levels[2])
    found = model(x)
    assert found.stride == 1 and found.logits.shape == (1, 19, *x.shape[2:])
    difference = (found.logits - expected).abs()
    print(f"\n{size}: largest difference {difference.max():.3g} of values up to {expected.abs().max():.3g}")
    # where two margins are equal but for rounding, another pixel may be the last one that is refined
    assert (difference.amax(1) > 1e-4).sum() <= 2
