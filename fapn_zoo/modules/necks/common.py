"""What every neck shares: checking its input, and taking dictionaries as torchvision's FPN does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

DIALECTS = ("detectron2", "maskformer")


class Neck(nn.Module):
    """Turns feature maps, fine to coarse, into as many maps of `out_channels` channels and unchanged sizes.

    Subclasses implement `pyramid`. Called with a sequence it returns a list; called with an ordered dictionary (as
    torchvision's `FeaturePyramidNetwork`) it returns one with the same keys. `num_outputs` keeps only that many
    of the finest maps, and no layer that serves none of them. `extra_blocks` is torchvision's: a module called as
    `(results, inputs, names)` that appends coarser levels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outputs: int | None = None,
        extra_blocks: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(in_channels) < 2:
            raise ValueError(f"a pyramid needs two levels or more, in_channels has {len(in_channels)}")
        if num_outputs is not None and not 1 <= num_outputs <= len(in_channels):
            raise ValueError(f"num_outputs={num_outputs}; expected 1 to {len(in_channels)}, the number of levels")
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.num_levels = len(self.in_channels)
        self.num_outputs = num_outputs or self.num_levels
        self.extra_blocks = extra_blocks

    def pyramid(self, features: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def forward(self, features: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor] | OrderedDict[str, Tensor]:
        """(N, in_channels[i], H_i, W_i), fine to coarse -> (N, out_channels, H_i, W_i), the finest num_outputs.

        Raises ValueError where the number of levels, their channels or the order of their sizes do not fit.
        """
        names = list(features) if isinstance(features, Mapping) else [str(i) for i in range(len(features))]
        maps = list(features.values()) if isinstance(features, Mapping) else list(features)
        self._check(maps)
        out, names = self.pyramid(maps)[: self.num_outputs], names[: self.num_outputs]
        if self.extra_blocks is not None:
            out, names = self.extra_blocks(out, maps, names)
        return OrderedDict(zip(names, out, strict=True)) if isinstance(features, Mapping) else out

    def _check(self, maps: list[Tensor]) -> None:
        if len(maps) != self.num_levels:
            raise ValueError(f"{type(self).__name__} was built for {self.num_levels} levels and got {len(maps)}")
        for level, (x, channels) in enumerate(zip(maps, self.in_channels, strict=True)):
            if x.shape[1] != channels:
                raise ValueError(f"level {level} has {x.shape[1]} channels, {type(self).__name__} expects {channels}")
        if torch.compiler.is_compiling():  # sizes may be symbols there, and a comparison would pin them
            return
        for level in range(1, len(maps)):
            fine, coarse = maps[level - 1].shape[-2:], maps[level].shape[-2:]
            if coarse[0] > fine[0] or coarse[1] > fine[1]:
                raise ValueError(
                    f"levels go from fine to coarse, but level {level - 1} is {tuple(fine)} and level {level} "
                    f"is {tuple(coarse)}"
                )


def resolve_norm(norm: str | None, dialect: str) -> str:
    """The norm of a dialect where none is named: GroupNorm in MaskFormer's, none in detectron2's."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r}; expected one of {', '.join(DIALECTS)}")
    return norm or ("gn" if dialect == "maskformer" else "none")


def sum_into(own: Tensor, other: Tensor) -> Tensor:
    """`own + other`, in the memory of `own` where no gradient can ask for it again.

    New memory for a large map is slow on a CPU. Nobody else may hold `own`.
    """
    if own.requires_grad or other.requires_grad or own.dtype != other.dtype:
        return own + other
    return own.add_(other)
