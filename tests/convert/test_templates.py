"""The engine of the key maps: templates with fields."""

from __future__ import annotations

import pytest

from fapn_zoo.convert.key_maps import KeyMap, Rule

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "official, ours, key, name",
    [
        ("res{stage}.{block}.w", "layer{stage-1}.{block}.w", "layer1.10.w", "res2.10.w"),
        ("a.{stage}.w", "b.{stage+1}.w", "b.1.w", "a.0.w"),
        ("p{level}.{2*step}.w", "q.{level-2}.{step}.w", "q.3.2.w", "p5.4.w"),
        ("m.{layer}.w", "n.{2*layer+1}.w", "n.7.w", "m.3.w"),
        ("l_{level}.{what}", "o.{level-1}.c.{what}", "o.2.c.bias", "l_3.bias"),
        ("a.{n}.b{n}", "c.{n}", "c.1", "a.1.b1"),
        ("plain.key", "other.key", "other.key", "plain.key"),
    ],
)
def test_the_official_name_of_a_key(official: str, ours: str, key: str, name: str) -> None:
    assert Rule(official, ours).translate(key) == name


@pytest.mark.parametrize(
    "official, ours, key",
    [
        ("l_{level}.w", "o.{level-1}.w", "o.x.w"),
        ("a.{n+1}.w", "b.{n}.w", "b.01.w"),  # two spellings of one number would meet
        ("p.{step}.w", "q.{2*step}.w", "q.3.w"),  # odd
        ("a.{n}.w", "b.{n}.w", "b.1.2.w"),
        ("a.{n}.w", "b.{n}.w", "b.1.wider"),
        ("a.{n}.w", "b.{n}.w", "xb.1.w"),
        ("c.{n}", "a.{n}.b{n}", "a.1.b2"),  # one field, two values
    ],
)
def test_what_a_rule_does_not_speak_of(official: str, ours: str, key: str) -> None:
    assert Rule(official, ours).translate(key) is None


def test_both_sides_need_the_same_fields() -> None:
    with pytest.raises(ValueError, match=r"templates 'a\.\{n\}' and 'b\.\{m\}' have different fields"):
        Rule("a.{n}", "b.{m}")


def test_two_rules_for_one_key() -> None:
    names = KeyMap([("b.{n}.w", "a.{n}.w"), ("first.w", "a.0.w")])
    assert names.translate(["a.1.w"]) == {"a.1.w": "b.1.w"}
    with pytest.raises(ValueError, match=r"two rules name 'a\.0\.w': 'b\.0\.w' and 'first\.w'"):
        names.translate(["a.1.w", "a.0.w"])


def test_two_keys_for_one_name() -> None:
    names = KeyMap([("x.w", "a.w"), ("x.w", "b.w")])
    with pytest.raises(ValueError, match=r"'a\.w' and 'b\.w' would both become 'x\.w'"):
        names.translate(["a.w", "b.w"])


def test_unknown_keys_are_left_out() -> None:
    assert KeyMap([("b.w", "a.w")]).translate(["c.w", "a.w"]) == {"a.w": "b.w"}
