"""The settings of a training run: one flat frozen dataclass; settings.json has the meaning and bounds of each field."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, get_args, get_origin, get_type_hints

from fapn_zoo.data.reading_rules import Reading
from fapn_zoo.train.recipes import PREFIX, find_recipe, official_settings, run_recipe
from fapn_zoo.zoo.registry import nearest

# What may differ between a run and its continuation: none of these changes the weights that come out, `threads` by no
# more than rounding.
FREE_ON_RESUME = frozenset(
    {"out", "resume", "overwrite", "log_every", "checkpoint_every", "eval_every", "eval_limit"}
    | {"eval_pictures", "curves", "log_with"}
    | {"val_data", "val_split", "workers", "threads", "cache"}
)
BEFORE = {"offset_lr_mult": 1.0}  # what runs did before there was such a setting, where it is not the default

# Below a tenth a crop is nearly all padding, above ten it shows a few blurred pixels of the picture.
SCALES = (0.1, 10.0)
TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
TABLE: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (files("fapn_zoo") / "train" / "settings.json").read_text(encoding="utf-8")
)["groups"]


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on. Written to OUT/settings.json when the run starts.

    `fapn-zoo train --help` prints the fields with their defaults and meanings; `describe` makes that text.
    """

    model: str = "perpixel_fapn"
    backbone: str | None = None
    neck: str | None = None
    task: str | None = None
    num_classes: int | None = None
    pretrained: bool = False
    pretrained_backbone: bool = False
    backbone_weights: str | None = None
    checkpoint_path: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    freeze: str = ""
    test_size: int | None = None
    data: str = ""
    train_split: str = "train"
    val_data: str = ""
    val_split: str = "val"
    white_level: float | None = None
    exif: str | None = None
    in_chans: int | None = None
    crop: tuple[int, int] = (512, 512)
    crop_category_max: float = 1.0
    scale: tuple[float, float] = (0.5, 2.0)
    short_sides: tuple[int, ...] = ()
    max_side: int = 0
    pad_value: float | None = None
    flip: float = 0.5
    colour_jitter: float = 1.0
    rare_classes: tuple[int, ...] = ()
    rare_prob: float = 0.0
    loss: str = "ce"
    class_weights: tuple[float, ...] | str = ()
    cache: bool = False
    steps: int = 1000
    max_hours: float = 0.0
    patience: int = 0
    best: bool = False
    batch_size: int = 8
    micro_batch: int | str = 0
    optimizer: str = "adamw"
    lr: float = 1e-4
    backbone_lr_mult: float = 1.0
    offset_lr_mult: float = 0.1
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    decay_bias: bool = True
    momentum: float = 0.9
    schedule: str = "poly"
    cooldown: float = 0.2
    poly_power: float = 0.9
    lr_steps: tuple[float, ...] = ()
    lr_gamma: float = 0.1
    warmup_steps: int = 0
    warmup_factor: float = 0.0
    clip_norm: float = 0.0
    clip_value: float = 0.0
    amp: str = "auto"
    ema: float = 0.0
    seed: int = 0
    eval_every: int = 0
    eval_limit: int = 0
    checkpoint_every: int = 500
    eval_pictures: int = 0
    curves: bool = True
    log_with: str = ""
    log_every: int = 20
    out: str = "runs/train"
    resume: str = "no"
    overwrite: bool = False
    workers: int = 0
    threads: int = 0
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        """ValueError naming the setting, its value and the allowed ones: no part of a run finds a bad one later."""
        for f in dataclasses.fields(self):
            value = _plain(getattr(self, f.name))
            object.__setattr__(self, f.name, value)
            _check(f.name, value)
        for name in ("out", "checkpoint_path", "backbone_weights"):  # no shell expands what follows the = of out=~/run
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, os.path.expanduser(value))
        if not self.out:
            raise ValueError("out= is empty; name a folder, or the present one as out=.")
        Reading(self.white_level, self.exif, 3 if self.in_chans is None else self.in_chans)  # refuses bad ones
        for name in ("ema", "momentum"):
            if not getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in 0..1 (1 excluded), got {getattr(self, name)}")
        if not self.layer_decay > 0:
            raise ValueError(f"layer_decay must lie in 0..1 (0 excluded), got {self.layer_decay}")
        if not SCALES[0] <= self.scale[0] <= self.scale[1] <= SCALES[1]:
            low, high = SCALES
            raise ValueError(f"scale must be (low, high) with {low} <= low <= high <= {high}, got {self.scale}")
        if (self.crop[0] == 0) != (self.crop[1] == 0):
            raise ValueError(f"crop must be two sides, or 0 for whole pictures, got {self.crop}")
        if self.max_side and not max(self.short_sides, default=0) <= self.max_side:
            raise ValueError(f"max_side={self.max_side} is less than a short side of {self.short_sides}")
        if self.max_side and not self.short_sides:
            raise ValueError(f"max_side={self.max_side} does nothing without short_sides=")
        if self.class_weights not in ((), "auto") and not min(self.class_weights) > 0:
            raise ValueError(f"class_weights must be positive, got {self.class_weights}")
        if bool(self.lr_steps) != (self.schedule == "steps"):
            cure = "drop them with lr_steps=" if self.lr_steps else "give some, such as lr_steps=0.67,0.89"
            raise ValueError(f"schedule={self.schedule} and lr_steps={self.lr_steps} do not go together: {cure}")
        if (self.patience or self.best) and not self.eval_every:
            raise ValueError(f"patience={self.patience} and best={self.best} go by evaluations: give eval_every=")
        if self.best and not self.checkpoint_every:
            raise ValueError("best=true goes back to a checkpoint: give checkpoint_every=")
        if self.clip_norm and self.clip_value:
            raise ValueError("clip_norm and clip_value are two ways to clip the gradient: give one of them")
        if self.overwrite and self.resume == "auto":
            raise ValueError("resume=auto goes on with the run in out and overwrite=true replaces it: give one of them")

    def replace(self, **changes: Any) -> Settings:
        """A copy with some values changed; unknown keys raise ValueError with the nearest names."""
        for key in changes:
            _check_key(key)
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


def _check(name: str, value: Any) -> None:
    """ValueError for a value of another type than the field's, out of its bounds, or not finite."""
    kind, row = KINDS[name], ROWS[name]
    least, most, one_of = (row.get(key) for key in ("least", "most", "one_of"))
    if value == row.get("word", ()):
        return
    if not _is(kind, value):
        raise ValueError(f"{name} must be of type {kind if get_args(kind) else kind.__name__}, got {value!r}")
    if one_of and value not in one_of:
        raise ValueError(f"{name} must be one of {', '.join(one_of)}, got {value!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)):
            continue
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


ROWS = {name: row for group in TABLE.values() for name, row in group.items()}
# of a setting that may also be a word, the type of its other values
KINDS = {n: get_args(kind)[0] if "word" in ROWS[n] else kind for n, kind in get_type_hints(Settings).items()}


def describe() -> str:
    """All settings in their groups, one line each: name=default as the command line takes it, and the meaning."""
    values = dataclasses.asdict(Settings())
    words = {n: f"{n}={','.join(map(str, v)) if isinstance(v, tuple) else str(v).lower()}" for n, v in values.items()}
    width = max(map(len, words.values()))
    lines = []
    for title, rows in TABLE.items():
        lines += ["", f"{title}:", *(f"  {words[name]:<{width}}  {row['meaning']}" for name, row in rows.items())]
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
    settings, changes = base or Settings(), {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise ValueError(f"expected key=value, got {pair!r}")
        key, dot, entry = key.strip().partition(".")
        _check_key(key)
        if dot:
            current = changes.get(key, getattr(settings, key))
            if not isinstance(current, dict):
                raise ValueError(f"{key} has no entries, so {key}.{entry}= means nothing")
            changes[key] = {**current, entry: _literal(text)}
        else:
            text = text.strip()
            changes[key] = text if text == ROWS[key].get("word") else _parse(KINDS[key], text)
    return dataclasses.replace(settings, **changes)


def _check_key(key: str) -> None:
    """ValueError with the nearest names where there is no such setting."""
    if key not in KINDS:
        raise ValueError(f"unknown setting {key!r}{nearest(key, list(KINDS)) or '; known: ' + ', '.join(KINDS)}")


def _parse(kind: Any, text: str) -> Any:
    """The text of a setting as a value of its field's type; what is of none comes as it is read, and is refused."""
    args = get_args(kind)
    if type(None) in args:
        return None if text.lower() in ("none", "null", "") else _parse(args[0], text)
    if kind is str:
        return text
    if kind is bool:
        return TRUTH.get(text.lower(), text)
    if get_origin(kind) is tuple:
        inner = text.strip("()[] ").replace("x", ",")
        parts = inner.removesuffix(",").split(",") if inner else ()
        values = tuple(_parse(args[0], part.strip()) for part in parts)
        return values * len(args) if len(values) == 1 and Ellipsis not in args else values
    if kind not in (int, float):
        return _literal(text)
    with contextlib.suppress(ValueError, OverflowError):
        whole = "e" in text.lower() and float(text).is_integer()  # 60e3 steps is a fair way to write it
        return kind(float(text) if whole or kind is float else text)
    return text


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load_recipe(name_or_path: str) -> Settings:
    """Runs `recipe()` of a recipe file and returns its Settings.

    Args:
        name_or_path: a path ending in .py; `official/MODEL`, see `official_settings`; or a bare name looked up
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
