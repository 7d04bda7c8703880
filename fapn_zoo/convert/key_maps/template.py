"""Names by templates: `"res{stage}.{block}.conv{conv}.weight"` on one side, on the other the same fields elsewhere.

A field stands for a whole number; `{stage-1}` and `{stage+1}` are neighbours of it, `{2*step}` its double.
After a colon, on the first side of a rule, stand the values that a field may have: `{level:1..3}` or
`{what:weight|bias}`; without one it is any number. As all of this can be inverted, one rule serves both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_FIELD = re.compile(r"\{(?:(?P<factor>\d+)\*)?(?P<name>[a-z_]+)(?P<shift>[+-]\d+)?(?::(?P<values>[^}]+))?\}")
Value = int | str


class _Field(NamedTuple):
    """An occurrence of a field: what is written is `factor * value + shift`, or the value itself where it is text."""

    name: str
    factor: int
    shift: int


class _Values(NamedTuple):
    """What a field may be: one of the words, or a number from `low` to `high` (None: no limit)."""

    words: tuple[str, ...] = ()
    low: int = 0
    high: int | None = None

    def parse(self, text: str, field: _Field) -> Value | None:
        """The value that was written as `text`, or None where no allowed one is written so."""
        if self.words:
            return text if text in self.words else None
        if not text.isdecimal() or str(int(text)) != text:
            return None
        value, rest = divmod(int(text) - field.shift, field.factor)
        return value if not rest and value >= self.low and (self.high is None or value <= self.high) else None


class _Side:
    """One template, compiled."""

    def __init__(self, template: str) -> None:
        self.parts: list[str | _Field] = []
        pattern, end = "", 0
        for match in _FIELD.finditer(template):
            field = _Field(match["name"], int(match["factor"] or 1), int(match["shift"] or 0))
            self.parts += [template[end : match.start()], field]
            pattern += re.escape(template[end : match.start()]) + r"(\w+?)"
            end = match.end()
        self.parts.append(template[end:])
        self.start = template.partition("{")[0]  # most keys differ there, and comparing it is fast
        self.fields = [part for part in self.parts if isinstance(part, _Field)]
        self.pattern = re.compile(pattern + re.escape(template[end:]))

    def read(self, key: str, values: Mapping[str, _Values]) -> dict[str, Value] | None:
        """The fields of a key that this template writes, else None."""
        match = self.pattern.fullmatch(key) if key.startswith(self.start) else None
        found: dict[str, Value] = {}
        for field, text in zip(self.fields, match.groups() if match else (), strict=match is not None):
            value = values[field.name].parse(text, field)
            if value is None or found.setdefault(field.name, value) != value:
                return None
        return found if match else None

    def write(self, found: Mapping[str, Value]) -> str:
        texts = []
        for part in self.parts:
            if isinstance(part, str):
                texts.append(part)
            else:
                value = found[part.name]
                texts.append(value if isinstance(value, str) else str(part.factor * value + part.shift))
        return "".join(texts)


class Rule:
    """A pair of templates. Raises ValueError where one side has a field that the other lacks."""

    def __init__(self, here: str, there: str) -> None:
        self.here, self.there = _Side(here), _Side(there)
        self.values = {match["name"]: _parse_values(match["values"]) for match in _FIELD.finditer(here)}
        if {f.name for f in self.here.fields} != {f.name for f in self.there.fields}:
            raise ValueError(f"templates {here!r} and {there!r} have different fields")

    def translate(self, key: str, *, back: bool = False) -> str | None:
        """The other side's name of a key; None where the rule does not speak of it."""
        source, target = (self.there, self.here) if back else (self.here, self.there)
        found = source.read(key, self.values)
        return None if found is None else target.write(found)


class KeyMap:
    """Rules that together name every tensor once.

    Args:
        rules: pairs of templates: of the official name, and of this package's.
    """

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        self.rules = [Rule(here, there) for here, there in rules]

    def translate(self, keys: Iterable[str], *, back: bool = False) -> tuple[dict[str, str], list[str]]:
        """New names of keys, and the keys that no rule speaks of.

        Raises:
            ValueError: two rules speak of one key, or two keys get one name.
        """
        names: dict[str, str] = {}
        unknown: list[str] = []
        taken: dict[str, str] = {}
        for key in keys:
            found = [name for rule in self.rules if (name := rule.translate(key, back=back)) is not None]
            if not found:
                unknown.append(key)
                continue
            if len(found) > 1:
                raise ValueError(f"two rules name {key!r}: {found[0]!r} and {found[1]!r}")
            if found[0] in taken:
                raise ValueError(f"{taken[found[0]]!r} and {key!r} would both become {found[0]!r}")
            taken[found[0]] = key
            names[key] = found[0]
        return names, unknown


def _parse_values(text: str | None) -> _Values:
    if text is None:
        return _Values()
    if ".." in text:
        low, high = text.split("..")
        return _Values(low=int(low), high=int(high))
    return _Values(tuple(text.split("|")))
