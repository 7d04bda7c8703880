"""Parameter groups, optimizer, learning rate, and the running mean of weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fapn_zoo.modules.deform_conv.conv import ModulatedDeformConv
from fapn_zoo.train.settings import Settings

# Parameters that hold positions, queries or tokens, whatever module keeps them: decay would pull them to one place.
NO_DECAY_NAMES = ("relative_position_bias_table", "absolute_pos_embed", "pos_embed", "query_embed", "query_feat")
NO_DECAY_NAMES += ("cls_token", "reg_token", "dist_token")


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    backbone_lr_mult: float = 1.0,
    decay_bias: bool = True,
    offset_lr_mult: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay; at most six groups, and two more per layer.

    `offset_lr_mult` is for the convolutions that say where a deformable convolution samples: each of their outputs sums
    over 9 * C inputs, so at the common rate an offset may move by a pixel in one step.

    With a `layer_decay` below 1, each layer of the backbone's timm network learns at that times the rate of the layer
    behind it, the last at that times `lr * backbone_lr_mult` (BEiT, arXiv 2106.08254); see `Backbone.depths`.

    No decay for norm layers, embeddings, position tables and other vectors that are not biases (layer scales);
    biases decay unless `decay_bias` is False, as the official recipes do (FaPN, MaskFormer).
    A parameter that two modules share is taken once.

    Returns:
        Dicts for a torch optimizer: params, lr, weight_decay, and base_lr, which the schedule scales.

    Raises:
        ValueError: when nothing is trainable, or timm does not know the layers.
    """
    factors = layer_factors(model, layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    deformable = [module for module in model.modules() if isinstance(module, ModulatedDeformConv)]
    slow = {parameter for module in deformable for parameter in module.offset_mask.parameters()}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            full_name = f"{module_name}.{name}" if module_name else name
            rate = lr * (backbone_lr_mult if full_name.startswith("backbone.") else 1.0)
            rate *= (offset_lr_mult if parameter in slow else 1.0) * factors.get(full_name, 1.0)
            decay = weight_decay if _decays(module, full_name, parameter, decay_bias) else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ValueError("no trainable parameter is left; freeze fewer modules")
    return [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def layer_factors(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """The factor of the learning rate of each parameter of the backbone's network; none where all layers are alike."""
    layers = model.backbone.depths() if layer_decay != 1 else {}
    last = max(layers.values(), default=0)
    return {f"backbone.body.{key}": layer_decay ** (last + 1 - layer) for key, layer in layers.items()}


def told_rates(model: nn.Module, settings: Settings) -> str:
    """The highest learning rate of each layer that is trained, for the log."""
    lr, decay, layers = settings.lr * settings.backbone_lr_mult, settings.layer_decay, model.backbone.depths()
    trained = {layers[key] for key, parameter in model.backbone.body.named_parameters() if parameter.requires_grad}
    rates = {layer: lr * decay ** (max(layers.values()) + 1 - layer) for layer in sorted(trained)}
    words = ", ".join(f"{layer}: {rate:.3g}" for layer, rate in rates.items())
    return f"learning rate of layer {words}; of all behind the backbone: {settings.lr:.3g}"


def _decays(module: nn.Module, name: str, parameter: Tensor, decay_bias: bool) -> bool:
    if isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower():
        return False
    if any(part in NO_DECAY_NAMES for part in name.split(".")):
        return False
    return decay_bias if name.endswith("bias") else parameter.ndim > 1


def build_optimizer(groups: list[dict[str, Any]], name: str, momentum: float = 0.9) -> torch.optim.Optimizer:
    """AdamW or SGD with momentum over `param_groups`.

    The fused kernels are used wherever all parameters live on a device that has them: on a CPU they save several
    milliseconds a step for a net of a few hundred tensors.
    """
    fused = all(p.device.type in ("cpu", "cuda") for g in groups for p in g["params"])
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, fused=fused)
    raise ValueError(f"optimizer must be adamw or sgd, got {name!r}")


def learning_rate_factor(step: int, s: Settings, cooling: Sequence[int] = ()) -> float:
    """What `lr` is multiplied with at a step: the schedule of the settings, times a linear warm-up.

    `poly` falls to 0 at `steps` as `(1 - step / steps) ** poly_power`, `cosine` as half a cosine; `steps` multiplies by
    `lr_gamma` from each of `lr_steps` on, a share of `steps` where it is below 1. `wsd` stays 1 until the last share
    `cooldown` of the steps, in which it falls as 1 - sqrt(x) (warm-up, stable, decay: arXiv 2405.18392). The warm-up's
    first factor is `warmup_factor` (0: 1 / warmup_steps), and from `warmup_steps` on it is 1 (0: one step earlier).

    Args:
        step: 0 for the first update.
        cooling: first and last step in which the rate falls from where it is, as that of `wsd` does; () where it does
            as the schedule says.
    """
    if cooling and step >= cooling[0]:
        return learning_rate_factor(cooling[0], s) * _fallen(step, *cooling)
    done = min(step / max(s.steps, 1), 1.0)
    if s.schedule == "steps":
        factor = s.lr_gamma ** sum(step >= round(at if at >= 1 else at * s.steps) for at in s.lr_steps)
    elif s.schedule == "wsd":
        factor = _fallen(step, (1 - s.cooldown) * s.steps, s.steps)
    else:
        factor = (1 - done) ** s.poly_power if s.schedule == "poly" else (1 + math.cos(math.pi * done)) / 2
    if step >= s.warmup_steps:
        return factor
    if not s.warmup_factor:
        return factor * (step + 1) / s.warmup_steps
    return factor * (s.warmup_factor + (1 - s.warmup_factor) * step / s.warmup_steps)


def _fallen(step: int, first: float, last: int) -> float:
    return 1 - math.sqrt(min(max((step - first) / max(last - first, 1e-9), 0), 1))


def set_learning_rate(optimizer: Any, factor: float) -> float:
    """Sets lr = base_lr * factor in every group and returns the highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)


class Ema:
    """Exponential running mean of a model's weights and floating point buffers.

    The decay grows as (1 + n) / (10 + n) up to `decay`, so that the random start is forgotten quickly. Buffers such
    as norm statistics are averaged alike, since they belong to the averaged weights; integer buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.means = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the means towards the model's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = _tensors(model)
        floats = [name for name, tensor in live.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.means[name] for name in floats], [live[name] for name in floats], 1 - decay)
        for name in live.keys() - floats:
            self.means[name].copy_(live[name])

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model holds the means; afterwards its own weights, to the bit."""
        live = _tensors(model)
        own = {name: tensor.detach().clone() for name, tensor in live.items()}
        _copy(self.means, live)
        try:
            yield
        finally:
            _copy(own, live)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = int(state["updates"])
        _copy(state["means"], self.means)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each shared tensor once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
