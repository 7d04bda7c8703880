"""The model class, and `build`: from a complete description to backbone, neck and head, joined."""

from __future__ import annotations

import inspect
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fapn_zoo.modules.backbones.backbone import Backbone
from fapn_zoo.modules.heads.outputs import Output, Targets, tensors_only
from fapn_zoo.modules.necks.encoder import CoarseEncoder
from fapn_zoo.runtime.exporting import to_tensors_only
from fapn_zoo.weights.folder import LoadReport, WithoutInit
from fapn_zoo.zoo.parts import EXTRA_LEVELS, HEADS, NECKS, load_part, stands_on
from fapn_zoo.zoo.registry import nearest
from fapn_zoo.zoo.spec import DataSpec, ModelSpec


class ZooModel(nn.Module):
    """`features = encoder(backbone(x))`, `head(neck(features), features)`.

    Args:
        backbone: image (N, in_chans, H, W) -> maps at strides 4, 8, 16, 32.
        neck: those maps -> maps of equal width at the same sizes.
        head: pyramid and backbone maps -> raw output.
        spec: the description; its `data` says how images become input.
        encoder: those maps -> maps of the same sizes, which neck and head read in their place; None: there is none.

    Attributes:
        load_report: what loading weights did; None for a model with new ones.

    Raises:
        ValueError: channels of backbone or encoder and neck differ.
    """

    load_report: LoadReport | None = None
    _warned = False

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, head: nn.Module, spec: ModelSpec, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        made = (encoder or backbone).out_channels
        if tuple(made) != tuple(neck.in_channels):
            raise ValueError(f"the backbone makes {made} channels, the neck takes {neck.in_channels}")
        self.backbone = backbone
        self.encoder = encoder
        self.neck = neck
        self.head = head
        self.spec = spec

    @property
    def data(self) -> DataSpec:
        return self.spec.data

    @property
    def num_classes(self) -> int:
        return self.spec.num_classes

    def forward(self, x: Tensor, sizes: Tensor | None = None, targets: Targets | None = None) -> Output:
        """Normalised images (N, in_chans, H, W) -> the head's raw output (see `fapn_zoo.modules.heads.outputs`).

        Normalising, padding and post-processing are not done here but by `predict`. `sizes` (N, 2) are those of the
        images without padding, `targets` the truth while training: only heads that choose among proposals or draw
        points at random read them.

        Exported to ONNX or TorchScript, which hold no numbers, the output's tensors are all that it holds as a tuple.
        Warns once where batch norms of a model with loaded weights are about to learn from images without targets.
        """
        if not torch.compiler.is_compiling() and self.training and targets is None and not self._warned:
            self._warn_of_training_mode()
        features = self.features(x)
        output = self.head(self.neck(features), features, sizes, targets)
        return tensors_only(output) if to_tensors_only(x) else output

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps that neck and head read, fine to coarse: the backbone's, through the encoder if there is one."""
        maps = self.backbone(x)
        return maps if self.encoder is None else self.encoder(maps)

    def _warn_of_training_mode(self) -> None:
        learning = (m for m in self.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats)
        if self.load_report is None or torch.jit.is_tracing() or next(learning, None) is None:
            return
        self._warned = True
        what = f"{self.spec.name} is in training mode: its batch norms normalise by this batch and change with it"
        fix = "call model.eval() first, or model.predict(); where you mean to train, ignore this or pass targets="
        warnings.warn(f"{what}; for the outputs of its loaded weights {fix}", UserWarning, stacklevel=5)

    def predict(self, x: Any, task: str | None = None, tile: int | tuple[int, int] | None = None, **rest: Any) -> Any:
        """Predicts on images of any kind and size; see `fapn_zoo.predict.predict`."""
        from fapn_zoo.predict import predict

        return predict(self, x, task=task, tile=tile, **rest)

    def save(self, folder: str | Path, **card: Any) -> Path:
        """Writes a weights folder that `create_model("local-dir:...")` reads; see `weights.folder.save_model`."""
        from fapn_zoo.weights.folder import save_model

        return save_model(self, folder, **card)


# Arguments of the parts that building itself decides.
RESERVED = {
    "backbone": {"self", "name", "pretrained", "in_chans", "cache_dir"},
    "encoder": {"self", "in_channels"},
    "neck": {"self", "in_channels", "num_outputs", "extra_blocks"},
    "head": {"self", "in_channels", "feature_channels", "num_classes", "things"},
}


def build(
    spec: ModelSpec, *, pretrained_backbone: bool = False, empty: bool = False, cache_dir: str | Path | None = None
) -> ZooModel:
    """The modules of a complete description, with fresh weights; or with none yet, for `assign_tensors`.

    Raises ValueError where the description is not complete.
    """
    if spec.backbone is None:
        raise ValueError(
            f"{spec.name!r} is an architecture: pass backbone= (a short name, any timm pyramid or plain ViT)"
        )
    if spec.num_classes is None:
        raise ValueError(f"{spec.name!r} has no label set: pass num_classes=")
    if not stands_on(spec.head, spec.neck):
        raise ValueError(f"{spec.name!r}: a {spec.head} head does not stand on the neck {spec.neck!r}")
    neck_part, head_part = NECKS[spec.neck], HEADS[spec.head]
    neck_class, head_class = load_part(neck_part.module), load_part(head_part.module)
    args = _split_args(spec, neck_class, head_class)
    if reads_tokens := head_part.dialect == "tokens":
        if refused := [key for key in spec.args if key.startswith(("backbone_pyramid", "encoder_"))]:
            raise ValueError(f"{spec.name!r} takes no {', '.join(refused)}: its head reads the backbone's tokens")
        args["backbone"]["pyramid"] = "tokens"

    with WithoutInit() if empty else nullcontext():
        source = {"pretrained": pretrained_backbone, "cache_dir": cache_dir}
        backbone = Backbone(spec.backbone, in_chans=spec.in_chans, **source, **args["backbone"])
        # `encoder_layers=6` asks for one, and so does any other argument of it
        encoder = CoarseEncoder(backbone.out_channels, **args["encoder"]) if args["encoder"] else None
        channels = (encoder or backbone).out_channels
        neck_args = {"dialect": head_part.dialect} | neck_part.args | args["neck"]
        neck = neck_class(channels, num_outputs=head_part.levels, **neck_args)
        if head_part.extra:
            neck.extra_blocks = load_part(EXTRA_LEVELS[head_part.extra])(neck.out_channels)
        if "things" in _keywords(head_class):  # it has an output for things and one for stuff
            args["head"]["things"] = spec.data.things
        head = head_class(neck.out_channels, channels[-1], spec.num_classes, **args["head"])
        if reads_tokens:
            head.join(backbone)
        return ZooModel(backbone, neck, head, spec, encoder)


def _split_args(spec: ModelSpec, neck_class: type, head_class: type) -> dict[str, dict[str, Any]]:
    """`{"neck_norm": "gn"}` -> `{"neck": {"norm": "gn"}}`; raises ValueError for what no part takes."""
    parts = {"backbone": Backbone, "encoder": CoarseEncoder, "neck": neck_class, "head": head_class}
    split: dict[str, dict[str, Any]] = {part: {} for part in parts}
    allowed = {f"{part}_{name}" for part, cls in parts.items() for name in _keywords(cls) - RESERVED[part]}
    for key, value in spec.args.items():
        part, _, name = key.partition("_")
        # The backbone hands what it does not know to timm, which refuses unknown arguments itself.
        if key not in allowed and not (part == "backbone" and name and name not in RESERVED[part]):
            raise ValueError(
                f"unknown argument {key!r} for {spec.name!r}{nearest(key, sorted(allowed))}; "
                f"known: {', '.join(sorted(allowed))}"
            )
        split[part][name] = value
    return split


def _keywords(cls: type) -> set[str]:
    """What a part's constructor takes by name; where it hands on what it does not know, also what its base takes."""
    found: set[str] = set()
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values()
        found |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found
