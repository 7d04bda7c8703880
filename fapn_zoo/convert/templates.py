"""Names by templates: `"res{stage}.{block}.conv{conv}.weight"` on one side, on the other the same fields elsewhere.

A field stands for a whole number; `{stage-1}` and `{stage+1}` are neighbours of it, `{2*step}` its double.
After a colon, on the first side of a rule, stand the values that a field may have: `{level:1..3}` or
`{what:weight|bias}`; without one it is any number. As all of this can be inverted, one rule serves both directions.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping

_FIELD = re.compile(r"\{(?:(?P<factor>\d+)\*)?(?P<name>[a-z_]+)(?P<shift>[+-]\d+)?(?::(?P<values>[^}]+))?\}")
Pairs = list[tuple[str, str]]
Value = int | str


class _Side:
    """One template, compiled."""

    def __init__(self, template: str) -> None:
        self.template = template
        self.start = template.partition("{")[0]  # most keys differ there, and comparing it is fast
        # what is written of a field is `factor * value + shift`, or the value itself where it is text
        self.fields = [(m["name"], int(m["factor"] or 1), int(m["shift"] or 0)) for m in _FIELD.finditer(template)]
        plain = _FIELD.split(template)[:: _FIELD.groups + 1]
        self.pattern = re.compile(r"(\w+?)".join(map(re.escape, plain)))

    def read(self, key: str, allowed: Mapping[str, range | tuple[str, ...]]) -> dict[str, Value] | None:
        """The fields of a key that this template writes, else None."""
        match = self.pattern.fullmatch(key) if key.startswith(self.start) else None
        if match is None:
            return None
        found: dict[str, Value] = {}
        for (name, factor, shift), text in zip(self.fields, match.groups(), strict=True):
            value, rest = text, 0
            if isinstance(allowed[name], range):
                if not text.isdecimal() or str(int(text)) != text:
                    return None
                value, rest = divmod(int(text) - shift, factor)
            if rest or value not in allowed[name] or found.setdefault(name, value) != value:
                return None
        return found

    def write(self, found: Mapping[str, Value]) -> str:
        def written(field: re.Match[str]) -> str:
            value, factor, shift = found[field["name"]], int(field["factor"] or 1), int(field["shift"] or 0)
            return value if isinstance(value, str) else str(factor * value + shift)

        return _FIELD.sub(written, self.template)


class Rule:
    """A pair of templates. Raises ValueError where one side has a field that the other lacks."""

    def __init__(self, here: str, there: str) -> None:
        self.here, self.there = _Side(here), _Side(there)
        self.allowed = {match["name"]: _parse_values(match["values"]) for match in _FIELD.finditer(here)}
        if self.allowed.keys() != {name for name, *_ in self.there.fields}:
            raise ValueError(f"templates {here!r} and {there!r} have different fields")

    def translate(self, key: str, *, back: bool = False) -> str | None:
        """The other side's name of a key; None where the rule does not speak of it."""
        source, target = (self.there, self.here) if back else (self.here, self.there)
        found = source.read(key, self.allowed)
        return None if found is None else target.write(found)


class KeyMap:
    """Rules, pairs of an official and of this package's template, that together name every tensor once."""

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
            if taken.setdefault(found[0], key) != key:
                raise ValueError(f"{taken[found[0]]!r} and {key!r} would both become {found[0]!r}")
            names[key] = found[0]
        return names, unknown


def _parse_values(text: str | None) -> range | tuple[str, ...]:
    if text and ".." not in text:
        return tuple(text.split("|"))
    low, high = text.split("..") if text else (0, sys.maxsize - 1)
    return range(int(low), int(high) + 1)
