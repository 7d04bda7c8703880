"""Names by templates: on one side `"layer{stage-1}.{block}.weight"`, on the other the same fields elsewhere.

A field stands for a word without dots. `{stage-1}` and `{stage+1}` are neighbours of a whole number, `{2*step}` is its
double, and such a field is a number on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import zip_longest

_FIELD = re.compile(r"\{(?:(?P<factor>\d+)\*)?(?P<name>[a-z_]+)(?P<shift>[+-]\d+)?\}")
Pairs = list[tuple[str, str]]


class Rule:
    """An official template and ours. Raises ValueError where one side has a field that the other lacks."""

    def __init__(self, official: str, ours: str) -> None:
        self.official = official
        self.fields = [(m["name"], int(m["factor"] or 1), int(m["shift"] or 0)) for m in _FIELD.finditer(ours)]
        if {name for name, *_ in self.fields} != {m["name"] for m in _FIELD.finditer(official)}:
            raise ValueError(f"templates {official!r} and {ours!r} have different fields")
        sides = [m for side in (official, ours) for m in _FIELD.finditer(side)]
        self.numbers = {m["name"] for m in sides if m["factor"] or m["shift"]}
        words = [r"(0|[1-9]\d*)" if name in self.numbers else r"(\w+)" for name, *_ in self.fields]
        between = [re.escape(text) for text in _FIELD.split(ours)[:: _FIELD.groups + 1]]
        self.pattern = re.compile("".join(map("".join, zip_longest(between, words, fillvalue=""))))

    def translate(self, key: str) -> str | None:
        """The official name of a key of ours; None where the rule does not speak of it."""
        if (match := self.pattern.fullmatch(key)) is None:
            return None
        found: dict[str, int | str] = {}
        for (name, factor, shift), text in zip(self.fields, match.groups(), strict=True):
            value, rest = divmod(int(text) - shift, factor) if name in self.numbers else (text, 0)
            if rest or found.setdefault(name, value) != value:
                return None

        def written(field: re.Match[str]) -> str:
            value, factor, shift = found[field["name"]], int(field["factor"] or 1), int(field["shift"] or 0)
            return str(factor * value + shift) if field["name"] in self.numbers else value

        return _FIELD.sub(written, self.official)


class KeyMap:
    """Rules, pairs of an official and of this package's template, that together name every tensor once."""

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        self.rules = [Rule(official, ours) for official, ours in rules]

    def translate(self, keys: Iterable[str]) -> dict[str, str]:
        """The official names of keys of ours, but for keys that no rule speaks of.

        Raises:
            ValueError: two rules speak of one key, or two keys get one name.
        """
        names: dict[str, str] = {}
        taken: dict[str, str] = {}
        for key in keys:
            found = [name for rule in self.rules if (name := rule.translate(key)) is not None]
            if len(found) > 1:
                raise ValueError(f"two rules name {key!r}: {found[0]!r} and {found[1]!r}")
            for name in found:
                if taken.setdefault(name, key) != key:
                    raise ValueError(f"{taken[name]!r} and {key!r} would both become {name!r}")
                names[key] = name
        return names
