"""Names of heads and necks, and what each stands for; the tables are in parts.json."""

from __future__ import annotations

import importlib
import json
from importlib.resources import files
from typing import Any, NamedTuple


class HeadPart(NamedTuple):
    """A head and what belongs to it.

    Attributes:
        module: its class, an `nn.Module`; see `fapn_zoo.modules.heads.outputs` for what it takes and gives.
        loss: the class of its loss, a `fapn_zoo.modules.losses.loss.Loss`; empty where it cannot be trained yet.
        tasks: what its output answers, keys of `fapn_zoo.tasks.TASKS`; the first is the default.
        dialect: of `fpn` and `fapn` below it; "tokens" where it reads a ViT's tokens and stands on the neck `none`.
        levels: how many neck outputs it reads, the finest first.
        extra: which levels the neck adds to them, a key of `EXTRA_LEVELS`; empty for none.
    """

    module: str
    loss: str
    tasks: tuple[str, ...]
    dialect: str
    levels: int = 4
    extra: str = ""


class NeckPart(NamedTuple):
    """A neck: its class, and the arguments that its name fixes."""

    module: str
    args: dict[str, Any] = {}


_TABLES = json.loads((files("fapn_zoo") / "zoo" / "parts.json").read_text(encoding="utf-8"))
_KNOWN = json.loads((files("fapn_zoo") / "zoo" / "backbones.json").read_text(encoding="utf-8"))
# Short names of backbones -> timm's.
BACKBONES: dict[str, str] = _KNOWN["names"]
# What rehearsing a timm architecture on the meta device finds (`fapn_zoo.modules.backbones`): the levels at strides 4
# to 32, and the divisor that images are padded to. Swins and deep ResNets take up to a second to rehearse, in every
# process; a test compares the table with the rehearsal. What is not listed is rehearsed.
REHEARSED: dict[str, tuple[tuple[int, ...], int]] = {
    name: (tuple(found["levels"]), found["divisor"]) for name, found in _KNOWN["rehearsed"].items()
}
HEADS = {name: HeadPart(**row | {"tasks": tuple(row["tasks"])}) for name, row in _TABLES["heads"].items()}
NECKS = {name: NeckPart(**row) for name, row in _TABLES["necks"].items()}
EXTRA_LEVELS: dict[str, str] = _TABLES["extra_levels"]


def register_head(name: str, part: HeadPart) -> None:
    """Adds a head of the user's own to this process, under every neck. Raises ValueError for a bad or taken name."""
    if not name.isidentifier():
        raise ValueError(f"head name {name!r}; only letters, digits and '_'")
    if name in HEADS:
        raise ValueError(f"head {name!r} exists already")
    HEADS[name] = part


def stands_on(head: str, neck: str) -> bool:
    """Whether a head can stand on a neck: one that reads tokens on `none` alone, others on any other."""
    return (HEADS[head].dialect == "tokens") == (neck == "none")


def load_part(path: str) -> type:
    """The class at `module:Class`; the only place where a table's text becomes code."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
