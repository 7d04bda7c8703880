"""The settings of a training run: one flat frozen dataclass, typed overrides, and recipes that fill it."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "schedule": ("poly",),
    "amp": ("auto", "no", "bf16", "fp16"),
    "resume": ("no", "auto"),
}
# What may differ between a run and its continuation: none of these changes the weights that come out, `threads` by no
# more than rounding.
FREE_ON_RESUME = frozenset(
    {"out", "resume", "overwrite", "log_every", "checkpoint_every", "eval_every", "eval_limit"}
    | {"val_data", "val_split", "workers", "threads", "cache"}
)


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on. Written to OUT/settings.json when the run starts.

    Model: `model` is any name `create_model` takes; `num_classes=None` takes the count from the data. `test_size` is
    the short side, in pixels, that pictures get before prediction: None = as the model has it, 0 = their own size.
    Data: `data` is a folder, `scenes:N`, or several joined with ","; `val_data=""` = the val split of `data` where it
    has one, "none" = never evaluate. `crop` is (height, width) in pixels, `scale` the range of the random resize,
    `colour_jitter` multiplies the usual colour changes (0 = none). With probability `rare_prob` the crop is put on a
    pixel of one of `rare_classes`. `cache` keeps decoded samples in memory, up to 1 GiB.
    Batch: `batch_size` is the total of all processes and accumulation steps; `micro_batch` caps what one device sees
    at once (0 = no cap), accumulation follows from it and changes no gradient.
    Optimisation: `lr` falls as (1 - step / steps) ** `poly_power` after a linear warm-up of `warmup_steps`;
    `clip_norm` is the L2 norm of the whole gradient (0 = no clipping); `ema` is the decay of the running mean of
    weights that evaluation and the final folder use (0 = off). `decay_bias` lets weight decay act on biases; norms,
    embeddings and position tables never decay.
    `class_weights` holds a factor per class for the loss of its pixels (per-pixel heads; empty = all alike).
    `freeze` names module prefixes, joined with ",", that keep their weights and statistics ("backbone").
    `amp="auto"` is bf16 on CUDA devices that have it and full precision elsewhere.
    `workers=0` loads in one background thread, more starts that many processes; `threads=0` leaves torch's choice.
    `eval_every` and `checkpoint_every` count steps, 0 = only at the end; `eval_limit` caps images per evaluation
    inside the run (0 = all); the final evaluation takes them all.
    """

    model: str = "perpixel_fapn"
    backbone: str | None = None
    neck: str | None = None
    num_classes: int | None = None
    pretrained: bool = False
    pretrained_backbone: bool = False
    checkpoint_path: str | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    freeze: str = ""
    test_size: int | None = None
    data: str = ""
    train_split: str = "train"
    val_data: str = ""
    val_split: str = "val"
    crop: tuple[int, int] = (512, 512)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    colour_jitter: float = 1.0
    rare_classes: tuple[int, ...] = ()
    rare_prob: float = 0.0
    class_weights: tuple[float, ...] = ()
    cache: bool = False
    steps: int = 1000
    batch_size: int = 8
    micro_batch: int = 0
    optimizer: str = "adamw"
    lr: float = 1e-4
    backbone_lr_mult: float = 1.0
    weight_decay: float = 1e-4
    decay_bias: bool = True
    momentum: float = 0.9
    schedule: str = "poly"
    poly_power: float = 0.9
    warmup_steps: int = 0
    clip_norm: float = 0.0
    amp: str = "auto"
    ema: float = 0.0
    seed: int = 0
    eval_every: int = 0
    eval_limit: int = 0
    checkpoint_every: int = 500
    log_every: int = 20
    out: str = "runs/train"
    resume: str = "no"
    overwrite: bool = False
    workers: int = 0
    threads: int = 0
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("batch_size", "log_every"):
            _at_least(name, getattr(self, name), 1)
        zero_or_more = ("micro_batch", "warmup_steps", "eval_every", "eval_limit", "checkpoint_every", "workers")
        for name in (*zero_or_more, "threads", "steps", "lr", "weight_decay", "clip_norm", "backbone_lr_mult"):
            _at_least(name, getattr(self, name), 0)
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in 0..1 (1 excluded), got {self.ema}")
        if min(self.crop) < 1:
            raise ValueError(f"crop must hold a positive height and width, got {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high, got {self.scale}")

    def replace(self, **changes: Any) -> Settings:
        """A copy with some values changed; unknown keys raise ValueError with the nearest names."""
        for key in changes:
            _known(key)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, in the order of the fields."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Keys whose value differs from a saved `to_dict()` and would change the weights of a continued run.

        Settings that did not exist when it was saved had what is now their default.
        """
        mine, saved = self.to_dict(), Settings().to_dict() | saved
        return [k for k in sorted(set(mine) | set(saved)) if k not in FREE_ON_RESUME and mine.get(k) != saved.get(k)]


def parse_overrides(pairs: Iterable[str], base: Settings | None = None) -> Settings:
    """Applies command line words `key=value` to `base` (default: the defaults).

    Values are read by the type of the field: numbers as Python writes them, booleans as true/false, pairs as `256,320`
    or one number for both, "none" where None is allowed, dictionaries as `model_args={...}` or one entry at a time as
    `model_args.key=value`.

    Raises:
        ValueError: a word without "=", an unknown key (with the nearest names), or a value of another type (naming
            key, value and the expected type).
    """
    settings = base if base is not None else Settings()
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        key = key.strip()
        if not separator:
            raise ValueError(f"expected key=value, got {pair!r}")
        key, dot, entry = key.partition(".")
        _known(key)
        if dot:
            current = changes.get(key, getattr(settings, key))
            if not isinstance(current, dict):
                raise ValueError(f"{key} has no entries, so {key}.{entry}= means nothing")
            changes[key] = {**current, entry: _literal(text)}
        else:
            changes[key] = _parse(key, text.strip())
    return settings.replace(**changes)


def load_recipe(name_or_path: str) -> Settings:
    """Runs `recipe()` of a recipe file and returns its Settings.

    Args:
        name_or_path: a path ending in .py, or a bare name looked up in ./recipes, then in the `recipes` folder
            inside or beside the package.

    Raises:
        FileNotFoundError: no such recipe; the message lists those found.
        ValueError: the file defines no recipe() that returns Settings.
    """
    path = _find_recipe(name_or_path)
    module_spec = importlib.util.spec_from_file_location(f"fapn_zoo_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    recipe = getattr(module, "recipe", None)
    settings = recipe() if callable(recipe) else None
    if not isinstance(settings, Settings):
        raise ValueError(f"{path} must define recipe() -> Settings")
    return settings


def recipe_folders() -> list[Path]:
    """Where bare recipe names are looked up, in order."""
    package = Path(__file__).resolve().parent.parent
    return [Path("recipes"), package / "recipes", package.parent / "recipes"]


def _find_recipe(name_or_path: str) -> Path:
    if name_or_path.endswith(".py"):
        path = Path(name_or_path)
        if path.is_file():
            return path
        raise FileNotFoundError(f"no recipe file {path}; {_found_recipes()}")
    for folder in recipe_folders():
        path = folder / f"{name_or_path}.py"
        if path.is_file():
            return path
    raise FileNotFoundError(f"no recipe named {name_or_path!r}; {_found_recipes(name_or_path)}")


def _found_recipes(name: str = "") -> str:
    names = sorted({p.stem for folder in recipe_folders() for p in folder.glob("*.py") if p.stem[0] != "_"})
    near = difflib.get_close_matches(name, names, n=3) if name else []
    hint = f"nearest: {', '.join(near)}; " if near else ""
    return f"{hint}found: {', '.join(names) or 'none'}"


def _known(key: str) -> None:
    names = [f.name for f in dataclasses.fields(Settings)]
    if key not in names:
        near = difflib.get_close_matches(key, names, n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else f"; known: {', '.join(names)}"
        raise ValueError(f"unknown setting {key!r}{hint}")


def _at_least(name: str, value: float, bound: int) -> None:
    if not value >= bound:
        raise ValueError(f"{name} must be at least {bound}, got {value}")


def _parse(key: str, text: str) -> Any:
    kind = get_type_hints(Settings)[key]
    args = get_args(kind)
    if type(None) in args:
        if text.lower() in ("none", "null", ""):
            return None
        kind = next(a for a in args if a is not type(None))
    try:
        return _read(kind, text)
    except (ValueError, TypeError, SyntaxError):
        expected = getattr(kind, "__name__", str(kind)) if not get_args(kind) else str(kind)
        raise ValueError(f"setting {key}={text!r} is not of type {expected}") from None


def _read(kind: Any, text: str) -> Any:
    if kind is str:
        return text
    if kind is bool:
        truth = {True: ("true", "yes", "on", "1"), False: ("false", "no", "off", "0")}
        for value, words in truth.items():
            if text.lower() in words:
                return value
        raise ValueError(text)
    if kind is int:
        number = float(text) if "e" in text.lower() else int(text)  # 60e3 steps is a fair way to write it
        if number != int(number):
            raise ValueError(text)
        return int(number)
    if kind is float:
        return float(text)
    if getattr(kind, "__origin__", None) is tuple:
        element = get_args(kind)[0]
        parts = [p for p in text.strip("()[] ").replace("x", ",").split(",") if p.strip()]
        values = tuple(_read(element, p.strip()) for p in parts)
        if Ellipsis in get_args(kind):
            return values
        if len(values) == 1:
            values *= len(get_args(kind))
        if len(values) != len(get_args(kind)):
            raise ValueError(text)
        return values
    value = ast.literal_eval(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
