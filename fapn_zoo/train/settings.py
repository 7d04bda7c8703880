"""The settings of a training run: one flat frozen dataclass with the meaning and bounds of each field beside it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.train.official import PREFIX, official_settings
from fapn_zoo.train.overrides import check_key, read_words
from fapn_zoo.train.recipes import find_recipe, run_recipe

# What may differ between a run and its continuation: none of these changes the weights that come out, `threads` by no
# more than rounding.
FREE_ON_RESUME = frozenset(
    {"out", "resume", "overwrite", "log_every", "checkpoint_every", "eval_every", "eval_limit"}
    | {"val_data", "val_split", "workers", "threads", "cache"}
)
BEFORE = {"offset_lr_mult": 1.0}  # what runs did before there was such a setting, where it is not the default
# The first field of each group -> its title in `fapn-zoo train --help`.
GROUPS = {"model": "Model", "data": "Data", "steps": "Batch", "optimizer": "Optimisation", "eval_every": "Run"}


# Below a tenth a crop is nearly all padding, above ten it shows a few blurred pixels of the picture.
SCALES = (0.1, 10.0)
MOST_SEED = 2**63 - 1  # what torch takes
MOST_SIDE = 16384  # pixels of a crop; a slip such as crop=512000 would fill the memory
SCHEDULES = ("poly", "steps", "cosine")
MOST_AT_ONCE = 1024  # processes or threads


def _setting(
    default: Any, meaning: str, *, least: int | None = None, most: int | None = None, one_of: tuple[str, ...] = ()
) -> Any:
    """A field with its default, its meaning in one line, and the bounds or the only values that it may have.

    The bounds of a tuple are those of each of its numbers.
    """
    bounds = {"meaning": meaning, "least": least, "most": most, "one_of": one_of}
    if default == {}:
        return field(default_factory=dict, metadata=bounds)
    return field(default=default, metadata=bounds)


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on. Written to OUT/settings.json when the run starts.

    `fapn-zoo train --help` prints the fields with their defaults and meanings; `describe` makes that text.
    """

    model: str = _setting("perpixel_fapn", "any name that create_model takes")
    backbone: str | None = _setting(None, "short or timm name; none: the model's own")
    neck: str | None = _setting(None, "fpn, fapn, ...; none: the model's own")
    task: str | None = _setting(None, "to train for, of what the head answers; none: the model's own")
    num_classes: int | None = _setting(None, "none: the count of the data", least=1)
    pretrained: bool = _setting(False, "start from the model's released weights")
    pretrained_backbone: bool = _setting(False, "start from ImageNet weights of the backbone")
    backbone_weights: str | None = _setting(None, "the same from a torch or safetensors file, see docs/models.md")
    checkpoint_path: str | None = _setting(None, "start from this weights folder or safetensors file")
    model_args: dict[str, Any] = _setting({}, "further arguments of create_model, also as model_args.NAME=VALUE")
    freeze: str = _setting("", "modules, joined with ',', that keep weights and statistics: backbone")
    test_size: int | None = _setting(
        None, "short side in pixels to predict at; none: the model's, 0: the image's", least=0, most=MOST_SIDE
    )
    data: str = _setting("", "folder, scenes:N, or several joined with ','")
    train_split: str = _setting("train", "splits to train on, joined with '+'")
    val_data: str = _setting("", "where val_split is; empty: in data, if it has it; none: never evaluate")
    val_split: str = _setting("val", "split to evaluate on")
    white_level: float | None = _setting(
        None, "stored value that is white; none: as classes.json or the files say", least=0
    )
    exif: str | None = _setting(None, "apply or ignore EXIF orientations; none: as classes.json says, or apply")
    in_chans: int | None = _setting(None, "bands of multispectral pictures; none: the model's own", least=1)
    crop: tuple[int, int] = _setting(
        (512, 512), "height, width in pixels of training images; 0: whole ones", least=0, most=MOST_SIDE
    )
    crop_category_max: float = _setting(
        1.0, "new crops, up to ten, while one class has more of the labelled pixels", least=0, most=1
    )
    scale: tuple[float, float] = _setting((0.5, 2.0), "range of the random resize, within 0.1,10")
    short_sides: tuple[int, ...] = _setting(
        (), "instead of scale: short sides in pixels, of which one is drawn", least=1, most=MOST_SIDE
    )
    max_side: int = _setting(0, "of short_sides: most pixels of the long side, 0: any", least=0, most=MOST_SIDE)
    pad_value: float | None = _setting(
        None, "0..255, around pictures smaller than crop; none: the model's mean colour", least=0, most=255
    )
    flip: float = _setting(0.5, "probability of mirroring", least=0, most=1)
    colour_jitter: float = _setting(1.0, "factor of the usual colour changes, 0: none, at most 3", least=0, most=3)
    rare_classes: tuple[int, ...] = _setting((), "class ids that rare_prob prefers", least=0)
    rare_prob: float = _setting(0.0, "probability that a crop is put on a pixel of a rare class", least=0, most=1)
    class_weights: tuple[float, ...] = _setting(
        (), "a factor per class for the loss of its pixels (per-pixel heads)", least=0
    )
    cache: bool = _setting(False, "keep decoded samples in memory, up to 1 GiB")
    steps: int = _setting(1000, "updates of the weights", least=0)
    batch_size: int = _setting(8, "images per step, of all processes and accumulation together", least=1)
    micro_batch: int = _setting(0, "at most so many at once on a device, 0: no cap; changes no gradient", least=0)
    optimizer: str = _setting("adamw", "adamw or sgd", one_of=("adamw", "sgd"))
    lr: float = _setting(1e-4, "see schedule", least=0)
    backbone_lr_mult: float = _setting(1.0, "factor of lr for the backbone", least=0)
    offset_lr_mult: float = _setting(0.1, "factor of lr for the offsets of deformable convolutions", least=0)
    weight_decay: float = _setting(1e-4, "never acts on norms, embeddings and position tables", least=0)
    decay_bias: bool = _setting(True, "weight decay acts on biases")
    momentum: float = _setting(0.9, "of sgd", least=0)
    schedule: str = _setting(
        "poly", "how lr falls: poly (as (1 - step / steps) ** poly_power), steps or cosine", one_of=SCHEDULES
    )
    poly_power: float = _setting(0.9, "see schedule", least=0)
    lr_steps: tuple[float, ...] = _setting((), "updates, or shares below 1, from which lr_gamma acts", least=0)
    lr_gamma: float = _setting(0.1, "factor of lr at each of lr_steps", least=0, most=1)
    warmup_steps: int = _setting(0, "lr rises linearly over so many steps", least=0)
    warmup_factor: float = _setting(0.0, "of lr at the first of them, 0: 1 / warmup_steps", least=0, most=1)
    clip_norm: float = _setting(0.0, "largest L2 norm of the whole gradient, 0: no clipping", least=0)
    clip_value: float = _setting(0.0, "largest part of the gradient, 0: no clipping", least=0)
    amp: str = _setting(
        "auto", "no, bf16, fp16; auto: bf16 on GPUs that have it, else no", one_of=("auto", "no", "bf16", "fp16")
    )
    ema: float = _setting(0.0, "decay of the mean of weights that is evaluated and saved, 0: off", least=0)
    seed: int = _setting(
        0, "of the first weights, the order of the data and its random changes", least=0, most=MOST_SEED
    )
    eval_every: int = _setting(0, "steps between evaluations, 0: only at the end", least=0)
    eval_limit: int = _setting(0, "at most so many images in each but the last evaluation, 0: all", least=0)
    checkpoint_every: int = _setting(500, "steps between checkpoints, also before evaluations; 0: at the end", least=0)
    log_every: int = _setting(20, "steps that a line of log.jsonl is the mean of", least=1)
    out: str = _setting("runs/train", "output folder")
    resume: str = _setting("no", "auto: go on from the checkpoint in out, if there is one", one_of=("no", "auto"))
    overwrite: bool = _setting(False, "replace what an earlier run left in out")
    workers: int = _setting(0, "processes that load data, 0: one background thread", least=0, most=MOST_AT_ONCE)
    threads: int = _setting(0, "of the CPU, 0: as PyTorch chooses", least=0, most=MOST_AT_ONCE)
    channels_last: bool = _setting(False, "memory format of weights and images")
    compile: bool = _setting(False, "by torch.compile")

    def __post_init__(self) -> None:
        """ValueError naming the setting, its value and the allowed ones: no part of a run finds a bad one later."""
        for f in dataclasses.fields(self):
            value = _plain(getattr(self, f.name))
            object.__setattr__(self, f.name, value)
            _check(f.name, value, f.metadata)
        for name in ("out", "checkpoint_path", "backbone_weights"):  # no shell expands what follows the = of out=~/run
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, os.path.expanduser(value))
        if not self.out:
            raise ValueError("out= is empty; name a folder, or the present one as out=.")
        Reading(self.white_level, self.exif, 3 if self.in_chans is None else self.in_chans)  # refuses bad ones
        for name in ("ema", "momentum"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in 0..1 (1 excluded), got {getattr(self, name)}")
        if not SCALES[0] <= self.scale[0] <= self.scale[1] <= SCALES[1]:
            low, high = SCALES
            raise ValueError(f"scale must be (low, high) with {low} <= low <= high <= {high}, got {self.scale}")
        if (self.crop[0] == 0) != (self.crop[1] == 0):
            raise ValueError(f"crop must be two sides, or 0 for whole pictures, got {self.crop}")
        if self.max_side and not max(self.short_sides, default=0) <= self.max_side:
            raise ValueError(f"max_side={self.max_side} is less than a short side of {self.short_sides}")
        if self.max_side and not self.short_sides:
            raise ValueError(f"max_side={self.max_side} does nothing without short_sides=")
        if self.class_weights and not min(self.class_weights) > 0:
            raise ValueError(f"class_weights must be positive, got {self.class_weights}")
        if bool(self.lr_steps) != (self.schedule == "steps"):
            cure = "drop them with lr_steps=" if self.lr_steps else "give some, such as lr_steps=0.67,0.89"
            raise ValueError(f"schedule={self.schedule} and lr_steps={self.lr_steps} do not go together: {cure}")
        if self.clip_norm and self.clip_value:
            raise ValueError("clip_norm and clip_value are two ways to clip the gradient: give one of them")
        if self.overwrite and self.resume == "auto":
            raise ValueError("resume=auto goes on with the run in out and overwrite=true replaces it: give one of them")

    def replace(self, **changes: Any) -> Settings:
        """A copy with some values changed; unknown keys raise ValueError with the nearest names."""
        for key in changes:
            check_key(self, key)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the order of the fields."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Keys whose value differs from a saved `to_dict()` and would change the weights of a continued run.

        Settings that did not exist when it was saved had what is now their default, or what `BEFORE` says.
        """
        mine, saved = self.to_dict(), Settings().to_dict() | BEFORE | saved
        return [k for k in sorted(set(mine) | set(saved)) if k not in FREE_ON_RESUME and mine.get(k) != saved.get(k)]


def _plain(value: Any) -> Any:
    """Paths as text and lists, as JSON has them, as tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(value) if isinstance(value, list) else value


def _check(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    """ValueError for a value of another type than the field's, out of its bounds, or not finite."""
    kind, one_of = KINDS[name], bounds["one_of"]
    if not _is(kind, value):
        raise ValueError(f"{name} must be of type {kind if get_args(kind) else kind.__name__}, got {value!r}")
    if one_of and value not in one_of:
        raise ValueError(f"{name} must be one of {', '.join(one_of)}, got {value!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)):
            continue
        least, most = bounds["least"], bounds["most"]
        if not (least is None or number >= least) or not (most is None or number <= most):  # also refuses nan
            words = f"at least {least}" if most is None else f"in {least}..{most}"
            raise ValueError(f"{name} must be {words}, got {value}")
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {value}")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"{name} must have names as keys, got {value}")
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must hold numbers, texts, lists and dicts only: {error}") from None


def _is(kind: Any, value: Any) -> bool:
    """Whether a value is of a field's type; whole numbers also serve as float, truth values not as numbers."""
    args = get_args(kind)
    if type(None) in args:
        return value is None or _is(args[0], value)
    if get_origin(kind) is tuple:
        fits = isinstance(value, tuple) and (Ellipsis in args or len(value) == len(args))
        return fits and all(_is(args[0], one) for one in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)


KINDS = get_type_hints(Settings)


def describe() -> str:
    """All settings in their groups, one line each: name=default as the command line takes it, and the meaning."""
    values = dataclasses.asdict(Settings())
    words = {n: f"{n}={','.join(map(str, v)) if isinstance(v, tuple) else str(v).lower()}" for n, v in values.items()}
    width = max(map(len, words.values()))
    lines = []
    for f in dataclasses.fields(Settings):
        if f.name in GROUPS:
            lines += ["", f"{GROUPS[f.name]}:"]
        lines.append(f"  {words[f.name]:<{width}}  {f.metadata['meaning']}")
    return "\n".join(lines[1:])


def parse_overrides(pairs: Iterable[str], base: Settings | None = None) -> Settings:
    """Applies command line words `key=value` to `base` (default: the defaults).

    Values are read by the type of the field: numbers as Python writes them, booleans as true/false, pairs as `256,320`
    or one number for both, "none" where None is allowed, dictionaries as `model_args={...}` or one entry at a time as
    `model_args.key=value`.

    Raises:
        ValueError: a word without "=", an unknown key (with the nearest names), or a value of another type (naming
            key, value and the expected type) or out of its bounds.
    """
    settings = base if base is not None else Settings()
    return dataclasses.replace(settings, **read_words(pairs, settings))


def load_recipe(name_or_path: str) -> Settings:
    """Runs `recipe()` of a recipe file and returns its Settings.

    Args:
        name_or_path: a path ending in .py; `official/MODEL`, see `fapn_zoo.train.official`; or a bare name looked up
            in ./recipes, then in the `recipes` folder inside or beside the package.

    Raises:
        FileNotFoundError: no such recipe; the message lists those found.
        ValueError: the file cannot be run, or defines no recipe() that returns Settings; no such official training.
    """
    if name_or_path.startswith(PREFIX) and not name_or_path.endswith(".py"):
        return Settings(**official_settings(name_or_path))
    path = find_recipe(name_or_path)
    settings = run_recipe(path)
    if not isinstance(settings, Settings):
        raise ValueError(f"{path} must define recipe() -> Settings")
    return settings
