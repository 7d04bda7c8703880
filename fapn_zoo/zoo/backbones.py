"""Short backbone names and what is known of the timm models behind them; the tables are in backbones.json. No torch."""

from __future__ import annotations

import json
from importlib.resources import files

_TABLES = json.loads((files("fapn_zoo") / "zoo" / "backbones.json").read_text(encoding="utf-8"))
BACKBONES: dict[str, str] = _TABLES["names"]
# What rehearsing a timm architecture on the meta device finds (`fapn_zoo.modules.backbones`): the levels at strides 4
# to 32, and the divisor that images are padded to. Swins and deep ResNets take up to a second to rehearse, in every
# process; a test compares the table with the rehearsal. What is not listed is rehearsed.
REHEARSED: dict[str, tuple[tuple[int, ...], int]] = {
    name: (tuple(found["levels"]), found["divisor"]) for name, found in _TABLES["rehearsed"].items()
}
