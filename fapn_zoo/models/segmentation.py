"""A dense prediction model: backbone, neck, head, and the description they were built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fapn_zoo._spec import DataSpec, ModelSpec


class SegmentationModel(nn.Module):
    """``head(neck(backbone(x)), backbone(x))``.

    Args:
        backbone: image (N, in_chans, H, W) -> maps at strides 4, 8, 16, 32.
        neck: those maps -> maps of equal width at the same sizes.
        head: pyramid and backbone maps -> raw output.
        spec: the description; its ``data`` says how images become input.

    Raises:
        ValueError: channels of backbone and neck differ.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module, spec: ModelSpec):
        super().__init__()
        if tuple(backbone.out_channels) != tuple(neck.in_channels):
            raise ValueError(f"the backbone makes {backbone.out_channels} channels, the neck takes {neck.in_channels}")
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.spec = spec

    @property
    def data(self) -> DataSpec:
        return self.spec.data

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    def forward(self, x: Tensor):
        """Normalised image (N, in_chans, H, W) -> the head's raw output at stride 4 (see `fapn_zoo.heads`).

        Normalising, padding and post-processing are not done here but by `predict`.
        """
        features = self.backbone(x)
        return self.head(self.neck(features), features)

    def predict(self, x: Any, task: str | None = None, tile: int | tuple[int, int] | None = None, **options: Any):
        """Predicts on images of any kind and size; see `fapn_zoo.predict.predict`."""
        from fapn_zoo.predict import predict

        return predict(self, x, task=task, tile=tile, **options)

    def save(self, folder: str | Path, **card: Any) -> Path:
        """Writes a weights folder that ``create_model("local-dir:...")`` reads; see `fapn_zoo._load.save_model`."""
        from fapn_zoo._load import save_model

        return save_model(self, folder, **card)

    def classifier_keys(self) -> list[str]:
        """State-dict names whose shape depends on ``num_classes``."""
        prefixes = tuple(f"head.{name}." for name in self.head.classifier)
        return [key for key in self.state_dict() if key.startswith(prefixes)]
