"""What a model is, as data: frozen dataclasses that a listing, a card and a weights folder share.

Nothing here imports torch, so that names can be listed without it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
FROM_DATA = ("category_ids", "values", "ignored_values")  # what a DataSpec keeps of how data is stored
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the test size, in all official evaluations at several scales
# Label set and short side at test time -> the official short sides, and the limit of the long side (TEST.AUG).
SCALES = {
    (labels, size): (tuple(int(factor * size) for factor in FACTORS), limit)
    for labels, size, limit in (
        ("ade20k", 512, 3584),
        ("ade20k", 640, 4480),
        ("cocostuff10k", 640, 4480),
        ("cityscapes", 1024, 4096),
    )
}


def as_tuples(values: Iterable[Any]) -> tuple[Any, ...]:
    """Lists within lists as tuples, which can be compared and hashed."""
    return tuple(as_tuples(value) if isinstance(value, (list, tuple)) else value for value in values)


def check_reading(white_level: float | None, exif: str) -> None:
    """ValueError naming what is out of its range of these two rules for reading pictures."""
    number = isinstance(white_level, (int, float)) and not isinstance(white_level, bool)
    if white_level is not None and not (number and 0 < white_level < math.inf):
        raise ValueError(
            f"white_level={white_level!r}; expected the stored value that is white, such as 4095 of 12 bits"
        )
    if exif not in ("apply", "ignore"):
        raise ValueError(f"exif={exif!r}; expected 'apply' or 'ignore'")


@dataclass(frozen=True)
class DataSpec:
    """Everything about images and labels that a prediction depends on; it travels with the weights.

    Attributes:
        labels: class names; the index is the class id.
        palette: one RGB colour (0..255) per class.
        things: ids of the classes whose objects are counted; the others are stuff.
        ignore_index: label value that is never scored.
        mean, std: per channel, in units of 0..255 pixels.
        channel_order: `"rgb"` or `"bgr"`.
        test_size: short side, in pixels, that an image is resized to before the network; None keeps its size.
        test_max_size: upper limit of the long side after that resize.
        test_window: side, in pixels, of square windows that are spread evenly over the resized image, whose class
            scores are averaged; None shows it whole.
        size_divisor: the normalised image is zero-padded at the bottom and right to a multiple of this.
        white_level, exif: how files were read in training, see `fapn_zoo.data.reading_rules`: the stored value that is
            white in pictures deeper than 8 bits (None: not said), and whether pictures are turned by their EXIF
            orientation, `"apply"` or `"ignore"`.
        category_ids: the COCO id of every class in the data it was trained on; empty where it is the class id plus 1.
        values, ignored_values: what that data stored for every class, and for none, see `fapn_zoo.data.labels`.
    """

    labels: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    things: tuple[int, ...] = ()
    ignore_index: int = 255
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: str = "rgb"
    test_size: int | None = None
    test_max_size: int | None = None
    size_divisor: int = 1
    white_level: float | None = None
    exif: str = "apply"
    category_ids: tuple[int, ...] = ()
    values: tuple[Any, ...] = ()
    ignored_values: tuple[Any, ...] = ()
    test_window: int | None = None

    def __post_init__(self) -> None:
        if self.category_ids and len(self.category_ids) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels but {len(self.category_ids)} category ids")
        if self.palette and len(self.palette) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels but {len(self.palette)} palette colours")
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order {self.channel_order!r}; expected 'rgb' or 'bgr'")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels, std has {len(self.std)}")
        if self.size_divisor < 1:
            raise ValueError(f"size_divisor {self.size_divisor}; expected 1 or more")
        check_reading(self.white_level, self.exif)

    def to_dict(self) -> dict[str, Any]:
        """Without what is as usual, from `white_level` on: older versions know none of it."""
        usual = [("white_level", None), ("test_window", None), ("exif", "apply"), *((key, ()) for key in FROM_DATA)]
        return {k: v for k, v in dataclasses.asdict(self).items() if (k, v) not in usual}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """The inverse of `to_dict` after a trip through JSON; unknown keys raise ValueError."""
        known = _known_fields(cls, values)
        known["palette"] = tuple(tuple(int(c) for c in colour) for colour in known.get("palette", ()))
        for name in ("labels", "things", "mean", "std", *FROM_DATA):
            if name in known:
                known[name] = as_tuples(known[name])
        return cls(**known)


@dataclass(frozen=True)
class WeightsSpec:
    """One set of weights: where it comes from and what may be done with it.

    Attributes:
        source: `"embedded"` (a folder inside the package), `"hub"` (a Hugging Face repository) or `"official"`
            (a checkpoint of the authors' release, converted on the user's machine).
        location: the folder's name below `weights/embedded`; `owner/name`; or an https URL, `gdrive:FILE_ID`
            or `hf:owner/name`, a repository at the Hub in another library's form.
        revision: commit or tag of the Hub repository.
        sha256: of `model.safetensors`, in hex; checked after a download.
        license: SPDX id of the weights (which may be stricter than the code's), or `"none-stated"`.
        metrics: reported values by name, in percent.
        note: where the values come from.
        page: the web page of the release, with its terms.
    """

    source: str
    location: str
    revision: str | None = None
    sha256: str | None = None
    license: str = "unknown"
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    page: str = ""

    @property
    def origin(self) -> str:
        """Where the weights come from and on what terms, in a few words."""
        where = {"embedded": "embedded", "hub": f"hub {self.location}", "official": "official release"}[self.source]
        return f"{where} ({self.license})"

    @property
    def md5_prefix(self) -> str | None:
        """The hex digits that detectron2's releases put into a file name: the beginning of the file's md5."""
        match = re.search(r"_([0-9a-f]{6,32})\.(?:pkl|pth)$", self.location)
        return match[1] if match else None


@dataclass(frozen=True)
class ModelSpec:
    """One model: structure, label set and known weights.

    Attributes:
        name: `<head>_<neck>_<backbone>_<labels>`; shorter names are architectures.
        head, neck: keys of the tables in `fapn_zoo.zoo.parts`.
        backbone: short name or timm name; None means that the caller chooses one.
        num_classes: classes without any "no object" or background extra; None means that the caller chooses.
        in_chans: channels of the input image.
        args: flat constructor arguments, prefixed `backbone_`, `encoder_`, `neck_` or `head_`.
        data: preprocessing; its labels are filled from `label_set` where one is named.
        label_set: a name known to `fapn_zoo.zoo.labels`, or None.
        weights: tag -> weights; the first tag is the default.
        task: what `predict` and `evaluate` do by default.
    """

    name: str
    head: str
    neck: str
    backbone: str | None = None
    num_classes: int | None = None
    in_chans: int = 3
    args: Mapping[str, Any] = field(default_factory=dict)
    data: DataSpec = DataSpec()
    label_set: str | None = None
    weights: Mapping[str, WeightsSpec] = field(default_factory=dict)
    task: str = "semantic"

    def to_config(self) -> dict[str, Any]:
        """The JSON form that `config.json` of a weights folder holds (without the weights table)."""
        config = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("weights", "data")}
        config["args"] = dict(self.args)
        config["data"] = self.data.to_dict()
        return config

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> ModelSpec:
        """The inverse of `to_config`. Raises ValueError for missing or unknown keys."""
        known = _known_fields(cls, values)
        missing = [name for name in ("name", "head", "neck", "backbone", "num_classes") if known.get(name) is None]
        if missing:
            raise ValueError(f"the model description lacks {', '.join(missing)}")
        known["data"] = DataSpec.from_dict(known.get("data", {}))
        args = known.get("args", {})
        known["args"] = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
        return cls(**known)


def _known_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(f"unknown {cls.__name__} keys {unknown}; known: {sorted(names)}")
    return dict(values)
