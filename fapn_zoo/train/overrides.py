"""The parser of `key=value`: words of the command line, typed by the fields of a dataclass."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable
from typing import Any, get_args, get_origin, get_type_hints

from fapn_zoo.zoo.registry import nearest

TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def check_key(settings: Any, key: str) -> None:
    """ValueError with the nearest names where the dataclass has no such field."""
    names = [f.name for f in dataclasses.fields(settings)]
    if key not in names:
        hint = nearest(key, names) or f"; known: {', '.join(names)}"
        raise ValueError(f"unknown setting {key!r}{hint}")


def read_words(pairs: Iterable[str], settings: Any) -> dict[str, Any]:
    """The changes of words `key=value` to a dataclass, read as `parse_overrides` says; later ones win."""
    kinds = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise ValueError(f"expected key=value, got {pair!r}")
        key, dot, entry = key.strip().partition(".")
        check_key(settings, key)
        if dot:
            current = changes.get(key, getattr(settings, key))
            if not isinstance(current, dict):
                raise ValueError(f"{key} has no entries, so {key}.{entry}= means nothing")
            changes[key] = {**current, entry: _literal(text)}
        else:
            changes[key] = _parse(key, kinds[key], text.strip())
    return changes


def _parse(key: str, kind: Any, text: str) -> Any:
    args = get_args(kind)
    if type(None) in args:
        if text.lower() in ("none", "null", ""):
            return None
        kind = next(a for a in args if a is not type(None))
    try:
        return _read(kind, text)
    except (ValueError, TypeError, SyntaxError, OverflowError):
        expected = str(kind) if get_args(kind) else kind.__name__
        raise ValueError(f"setting {key}={text!r} is not of type {expected}") from None


def _read(kind: Any, text: str) -> Any:
    """A value of one type; any error means that the text is none."""
    if kind is bool:
        if text.lower() not in TRUTH:
            raise ValueError(text)
        return TRUTH[text.lower()]
    if kind is int:
        number = float(text) if "e" in text.lower() else int(text)  # 60e3 steps is a fair way to write it
        if number != int(number):
            raise ValueError(text)
        return int(number)
    if get_origin(kind) is tuple:
        return _read_tuple(get_args(kind), text)
    if get_origin(kind) is dict:
        value = ast.literal_eval(text)
        if not isinstance(value, dict):
            raise ValueError(text)
        return value
    return kind(text)


def _read_tuple(kinds: tuple[Any, ...], text: str) -> tuple[Any, ...]:
    inner = text.strip("()[] ").replace("x", ",")
    parts = inner.removesuffix(",").split(",") if inner else ()
    values = tuple(_read(kinds[0], part.strip()) for part in parts)
    if len(values) == 1 and Ellipsis not in kinds:
        values *= len(kinds)
    if len(values) != len(kinds) and Ellipsis not in kinds:
        raise ValueError(text)
    return values


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
