from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fapn_zoo.data.labels import LabelMap, default_palette

pytestmark = pytest.mark.unit


def write(path: Path, **data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_default_palette_is_fixed_distinct_and_nested():
    many = default_palette(1000)
    assert len(set(many)) == 1000 and (0, 0, 0) not in many
    assert many[:7] == default_palette(7) and default_palette(0) == ()
    assert all(isinstance(v, int) and 0 <= v <= 255 for colour in many for v in colour)
    first = default_palette(12)
    apart = [sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5 for a in first for b in first if a != b]
    assert min(apart) > 20  # an eye tells them apart
    with pytest.raises(ValueError, match="-1"):
        default_palette(-1)


def test_lists_become_tuples_and_equal_maps_are_equal():
    a = LabelMap(["x", "y"], [[1, 2, 3], [4, 5, 6]])
    assert a == LabelMap(("x", "y"), ((1, 2, 3), (4, 5, 6)), 255)
    assert a.num_classes == 2 and hash(a) == hash(LabelMap(("x", "y"), a.palette))
    assert LabelMap(("x",)).palette == default_palette(1)


@pytest.mark.parametrize(
    ("names", "palette", "ignore", "says"),
    [
        ((), (), 255, "at least one"),
        ("road", (), 255, "'road'"),
        (("a", ""), (), 255, "non-empty"),
        (("a", 3), (), 255, "3"),
        (("a", "b", "a"), (), 255, "repeated: 'a'"),
        (("a\nb",), (), 255, r"one line of text; got 'a\\nb'"),
        (("a", "\x1b[31mb", "\ud800"), (), 255, r"one line of text; got '\\x1b\[31mb', '\\ud800'"),
        (tuple(map(str, range(140_000))), (), 255, "140000 classes; label files hold at most 65535"),
        (("a", "b"), ((1, 2, 3),), 255, "1 colours for 2 class names"),
        (("a", "b"), ((1, 2, 3), (1, 2, 256)), 255, r"'b'.*0\.\.255.*256"),
        (("a",), ((1, 2),), 255, "'a'"),
        (("a",), ((1.0, 2, 3),), 255, "'a'"),
        (("a",), ((True, 2, 3),), 255, "'a'"),
        (("a",), "red", 255, "'red'"),
        (("a", "b"), (), 1, "class 'b'"),
        (("a", "b"), (), -1, "-1"),
        (("a", "b"), (), 65536, "65536"),
        (("a", "b"), (), "255", "'255'"),
    ],
)
def test_what_is_refused(names: tuple, palette: object, ignore: object, says: str):
    with pytest.raises(ValueError, match=says):
        LabelMap(names, palette, ignore)


@pytest.mark.parametrize(
    ("things", "says"),
    [
        ((2,), r"ids in 0\.\.1; got 2"),
        ((0, -1), "got -1"),
        ((1, 0, 1), "got 1, 1"),
        ((True,), "got True"),
        ((0.0,), "got 0.0"),
        (("b",), "got 'b'"),
        ("b", "must be a list of class ids, not 'b'"),
        ({0, 1}, "must be a list"),
    ],
)
def test_what_is_refused_as_things(things: object, says: str):
    with pytest.raises(ValueError, match=says):
        LabelMap(("a", "b"), things=things)


def test_things_are_kept_in_order(tmp_path: Path):
    labels = LabelMap(("sky", "car", "tree", "person"), things=[3, 1])
    assert labels.things == (1, 3) and hash(labels) == hash(LabelMap(labels.names, things=(1, 3)))
    assert labels != LabelMap(labels.names) and LabelMap(labels.names).things == ()
    assert LabelMap.from_json(write(tmp_path / "classes.json", names=labels.names, things=[3, 1])) == labels
    with pytest.raises(ValueError, match=r"c\.json: things must be different class ids in 0\.\.0; got 7"):
        LabelMap.from_json(write(tmp_path / "c.json", names=["a"], things=[7]))


def test_zero_may_be_named_and_ignored():
    assert LabelMap(("unlabelled", "cell"), (), 0).ignore_index == 0


def test_default():
    labels = LabelMap.default(3)
    assert labels.names == ("class_0", "class_1", "class_2") and labels.ignore_index == 255
    assert LabelMap.default(300).ignore_index == 65535
    for wrong in (0, -2, 2.5, True, "3"):
        with pytest.raises(ValueError, match=str(wrong)):
            LabelMap.default(wrong)


def test_json_holds_all_of_it(tmp_path: Path):
    labels = LabelMap(("Straße", "car"), ((1, 2, 3), (4, 5, 6)), 254)
    assert LabelMap.from_json(write(tmp_path / "classes.json", **dataclasses.asdict(labels))) == labels


def test_json_needs_only_names(tmp_path: Path):
    assert LabelMap.from_json(write(tmp_path / "c.json", names=["a", "b"])) == LabelMap(("a", "b"))
    many = [f"n{i}" for i in range(300)]
    assert LabelMap.from_json(write(tmp_path / "c.json", names=many)).ignore_index == 65535
    extra = write(tmp_path / "c.json", names=["a"], ignore_index=9, num_classes=1, white_level=4095, exif="ignore")
    assert LabelMap.from_json(extra).ignore_index == 9


def test_json_errors_name_the_file(tmp_path: Path):
    file = tmp_path / "classes.json"
    with pytest.raises(FileNotFoundError, match="classes.json"):
        LabelMap.from_json(file)
    for content, says in [
        ("{", "is not readable JSON"),
        ("[1]", '"names"'),
        ('{"names": "road"}', '"names"'),
        ('{"names": ["a", "b"], "num_classes": 3}', "num_classes is 3, but names lists 2"),
        ('{"names": ["a", "a"]}', "'a'"),
        ('{"names": ["a"], "palette": [[1, 2, 300]]}', "300"),
        ('{"names": ["a"], "palette": "red"}', "'red'"),
    ]:
        file.write_text(content)
        with pytest.raises(ValueError, match="classes.json") as caught:
            LabelMap.from_json(file)
        assert says in str(caught.value)
    file.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ValueError, match="classes.json"):
        LabelMap.from_json(file)


def test_json_as_windows_writes_it(tmp_path: Path):
    file = tmp_path / "classes.json"
    text = '{"names": ["Straße", "car"]}'
    file.write_bytes(text.encode("utf-8-sig"))
    assert LabelMap.from_json(file).names == ("Straße", "car")
    for coding, says in [
        ("utf-16", "it is UTF-16 text; save it as UTF-8"),
        ("utf-16-le", "it is UTF-16 text; save it as UTF-8"),
        ("cp1252", "line 1 is no UTF-8 text; save it as UTF-8"),
    ]:
        file.write_bytes(text.encode(coding))
        with pytest.raises(ValueError, match=f"classes.json is not readable JSON: {says}"):
            LabelMap.from_json(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"names": ["a"], "ignore_label": 0}',
            "unknown key 'ignore_label'; nearest: ignored_values, ignore_index; known keys: names, ",
        ),
        ('{"names": ["a"], "pallete": []}', "unknown key 'pallete'; nearest: palette"),
        ('{"names": ["a"], "Names": ["b"]}', "unknown key 'Names'; nearest: names"),
        ('{"names": ["a"], "names": ["b"]}', "the key 'names' is there twice"),
        ('{"names": ["a"],\n}', "line 2"),
        ('{"names": {"0": "a"}}', "names is {'0': 'a'}; expected an object with a list"),
        ('{"names": null}', "names is None; expected"),
        ('{"names": ["a", null]}', r"non-empty strings, at least one; got \[None\]"),
        ('{"names": ["a"], "palette": false}', "the palette must be a list of RGB triples, not False"),
        ('{"names": ["a"], "things": 0}', "things must be a list of class ids, not 0"),
        ('{"names": ["a"], "ignore_index": 255.0}', "an integer in 0..65535, not 255.0"),
        ("", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
    ],
)
def test_json_mistakes_are_told_apart(tmp_path: Path, text: str, says: str):
    file = tmp_path / "classes.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"classes.json.*{says}") as caught:
        LabelMap.from_json(file)
    assert "\n" not in str(caught.value)


def test_reading_labels_imports_no_torch():
    code = "import sys, fapn_zoo.data.labels; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
