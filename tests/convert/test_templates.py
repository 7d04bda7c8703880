"""The engine of the key maps: templates with fields, in both directions."""

from __future__ import annotations

import pytest

from fapn_zoo.convert.templates import KeyMap, Rule

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "here, there, key, other",
    [
        ("res{stage}.{block}.w", "layer{stage-1}.{block}.w", "res2.10.w", "layer1.10.w"),
        ("a.{stage}.w", "b.{stage+1}.w", "a.0.w", "b.1.w"),
        ("p{level}.{2*step}.w", "q.{level-2}.{step}.w", "p5.4.w", "q.3.2.w"),
        ("m.{layer}.w", "n.{2*layer+1}.w", "m.3.w", "n.7.w"),
        ("l_{level:1..3}.{what:weight|bias}", "o.{level-1}.c.{what}", "l_3.bias", "o.2.c.bias"),
        ("plain.key", "other.key", "plain.key", "other.key"),
    ],
)
def test_a_rule_is_its_own_inverse(here: str, there: str, key: str, other: str) -> None:
    rule = Rule(here, there)
    assert rule.translate(key) == other
    assert rule.translate(other, back=True) == key


@pytest.mark.parametrize(
    "here, there, key, back",
    [
        ("l_{level:1..3}.w", "o.{level-1}.w", "l_4.w", False),
        ("l_{level:1..3}.w", "o.{level-1}.w", "l_0.w", False),
        ("l_{level:1..3}.w", "o.{level-1}.w", "o.3.w", True),
        ("p.{2*step}.w", "q.{step}.w", "p.3.w", False),  # odd
        ("a.{n}.w", "b.{n+1}.w", "b.0.w", True),  # would be -1
        ("a.{n}.w", "b.{n}.w", "a.01.w", False),  # two spellings of one number would meet
        ("a.{n}.w", "b.{n}.w", "a.x.w", False),
        ("a.{n}.w", "b.{n}.w", "a.1.2.w", False),
        ("a.{n}.w", "b.{n}.w", "a.1.wider", False),
        ("a.{n}.w", "b.{n}.w", "xa.1.w", False),
        ("a.{what:weight|bias}", "b.{what}", "a.running_mean", False),
        ("a.{n}.b{n}", "c.{n}", "a.1.b2", False),  # one field, two values
    ],
)
def test_what_a_rule_does_not_speak_of(here: str, there: str, key: str, back: str | None) -> None:
    assert Rule(here, there).translate(key, back=back) is None


def test_both_sides_need_the_same_fields() -> None:
    with pytest.raises(ValueError, match=r"templates 'a\.\{n\}' and 'b\.\{m\}' have different fields"):
        Rule("a.{n}", "b.{m}")


def test_two_rules_for_one_key() -> None:
    names = KeyMap([("a.{n}.w", "b.{n}.w"), ("a.0.w", "first.w")])
    assert names.translate(["a.1.w"]) == ({"a.1.w": "b.1.w"}, [])
    with pytest.raises(ValueError, match=r"two rules name 'a\.0\.w': 'b\.0\.w' and 'first\.w'"):
        names.translate(["a.1.w", "a.0.w"])


def test_two_keys_for_one_name() -> None:
    names = KeyMap([("a.w", "x.w"), ("b.w", "x.w")])
    with pytest.raises(ValueError, match=r"'a\.w' and 'b\.w' would both become 'x\.w'"):
        names.translate(["a.w", "b.w"])
    with pytest.raises(ValueError, match=r"two rules name 'x\.w'"):
        names.translate(["x.w"], back=True)


def test_unknown_keys_are_handed_back() -> None:
    assert KeyMap([("a.w", "b.w")]).translate(["c.w", "a.w"]) == ({"a.w": "b.w"}, ["c.w"])
