"""Settings, and overrides typed by the fields."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.train.settings import ROWS, TABLE, Settings, describe, parse_overrides
from fapn_zoo.train.setup import _check_rare_classes

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("steps=60e3", 60000),
        ("lr=6e-5", 6e-5),
        ("lr=1", 1.0),
        ("crop=256,320", (256, 320)),
        ("crop=512", (512, 512)),
        ("crop=256x320", (256, 320)),
        ("crop=(256, 320)", (256, 320)),
        ("scale=0.5,2", (0.5, 2.0)),
        ("rare_classes=2,6,9", (2, 6, 9)),
        ("rare_classes=", ()),
        ("rare_classes=(2,)", (2,)),
        ("pretrained_backbone=True", True),
        ("compile=no", False),
        ("backbone=swin_t", "swin_t"),
        ("backbone=none", None),
        ("num_classes=7", 7),
        ("num_classes=None", None),
        ("data=a,scenes:40", "a,scenes:40"),
        ("data=folder=x", "folder=x"),
        ("model_args={'neck_norm': 'gn'}", {"neck_norm": "gn"}),
        ("model_args.neck_out_channels=64", {"neck_out_channels": 64}),
        ("model_args.backbone_norm=frozen_bn", {"backbone_norm": "frozen_bn"}),
        ("model_args.head_flag=true", {"head_flag": True}),
    ],
)
def test_overrides_are_typed_by_the_field(word: str, value: object) -> None:
    key = word.split("=")[0].split(".")[0]
    found = getattr(parse_overrides([word]), key)
    assert found == value and type(found) is type(value)


def test_later_words_win_and_entries_add_up() -> None:
    base = Settings(model_args={"a": 1}, lr=1.0)
    found = parse_overrides(["lr=2", "model_args.b=2", "model_args.c=x", "lr=3"], base)
    assert found.lr == 3 and found.model_args == {"a": 1, "b": 2, "c": "x"}
    assert base.model_args == {"a": 1}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rate=1", "unknown setting 'learning_rate'"),
        ("batchsize=4", "nearest: batch_size"),
        ("stesp=4", "nearest: steps"),
        ("steps", "expected key=value, got 'steps'"),
        ("steps=many", "steps must be of type int, got 'many'"),
        ("steps=1.5", "steps must be of type int, got '1.5'"),
        ("lr=fast", "lr must be of type float, got 'fast'"),
        ("compile=maybe", "compile must be of type bool, got 'maybe'"),
        ("crop=1,2,3", r"crop must be of type tuple\[int, int\], got \(1, 2, 3\)"),
        ("model_args=[1]", "model_args"),
        ("lr.x=1", "lr has no entries"),
        ("rare_classes=x", "rare_classes must be of type"),
        ("class_weights=1,,2", "class_weights must be of type"),
        ("num_classes=few", "num_classes must be of type int"),
        ("optimizer=lamb", "optimizer must be one of adamw, sgd, got 'lamb'"),
        ("out=", "out= is empty; name a folder, or the present one as out=."),
        ("steps=-1", "steps must be at least 0, got -1"),
        ("batch_size=0", "batch_size must be at least 1, got 0"),
        ("lr=nan", "lr must be at least 0"),
        ("ema=1", "ema must lie in 0..1"),
        ("ema=-0.1", "ema must be at least 0"),
        ("scale=2,1", "scale must be"),
        ("scale=0.001,1", r"scale must be \(low, high\) with 0.1 <= low <= high <= 10.0, got \(0.001, 1.0\)"),
        ("scale=1,1000", "scale must be"),
        ("scale=0.5,nan", "scale must be finite, got"),
        ("flip=7", "flip must be in 0..1, got 7.0"),
        ("flip=nan", "flip must be in 0..1, got nan"),
        ("seed=-1", "seed must be in 0..9223372036854775807, got -1"),
        ("seed=1e20", "seed must be in 0.."),
        ("lr=inf", "lr must be finite, got inf"),
        ("weight_decay=-inf", "weight_decay must be at least 0"),
        ("clip_norm=inf", "clip_norm must be finite"),
        ("poly_power=-1", "poly_power must be at least 0"),
        ("schedule=steps", r"schedule=steps and lr_steps=\(\) do not go together: give some"),
        ("lr_steps=0.5", "drop them with lr_steps="),
        ("lr_gamma=2", "lr_gamma must be in 0..1"),
        ("momentum=1", "momentum must lie in 0..1"),
        ("rare_prob=1.5", "rare_prob must be in 0..1"),
        ("rare_classes=1,-2", r"rare_classes must be at least 0, got \(1, -2\)"),
        ("class_weights=1,nan", "class_weights must be at least 0"),
        ("class_weights=1,0", "class_weights must be positive"),
        ("colour_jitter=9", "colour_jitter must be in 0..3"),
        ("crop=0,64", "crop must be two sides, or 0 for whole pictures"),
        ("crop=1e9", "crop must be in 0..16384"),
        ("short_sides=0,64", r"short_sides must be in 1..16384, got \(0, 64\)"),
        ("max_side=64", "max_side=64 does nothing without short_sides="),
        ("pad_value=300", "pad_value must be in 0..255"),
        ("crop_category_max=2", "crop_category_max must be in 0..1"),
        ("test_size=-1", "test_size must be in 0..16384"),
        ("num_classes=0", "num_classes must be at least 1"),
        ("threads=100000", "threads must be in 0..1024"),
        ("model_args={1: 2}", "model_args must have names as keys"),
        ("model_args={'a': {1, 2}}", "model_args must hold numbers, texts, lists and dicts only"),
    ],
)
def test_bad_words_name_key_value_and_type(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_overrides([word])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": 256}, r"crop must be of type tuple\[int, int\], got 256"),
        ({"crop": (1, 2, 3)}, "crop must be of type"),
        ({"steps": 2.5}, "steps must be of type int, got 2.5"),
        ({"steps": True}, "steps must be of type int, got True"),
        ({"flip": "0.5"}, "flip must be of type float, got '0.5'"),
        ({"overwrite": "false"}, "overwrite must be of type bool, got 'false'"),
        ({"data": None}, "data must be of type str, got None"),
        ({"resume": "auto", "overwrite": True}, "resume=auto goes on .* overwrite=true replaces it: give one of them"),
    ],
)
def test_settings_made_in_python_are_checked_alike(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**values)
    with pytest.raises(ValueError, match=message):
        Settings().replace(**values)


def test_paths_and_lists_become_what_json_holds() -> None:
    settings = Settings(out=Path("a") / "b", crop=[3, 4], lr=1, model_args={"a": 1})
    assert (settings.out, settings.crop) == ("a/b", (3, 4)) and json.dumps(settings.to_dict())


def test_a_home_folder_is_found_where_no_shell_expands_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    made = parse_overrides(["out=~/run", "checkpoint_path=~/older/model"])
    assert (made.out, made.checkpoint_path) == (f"{tmp_path}/run", f"{tmp_path}/older/model")
    assert parse_overrides(["out=runs/~mine"]).out == "runs/~mine"


def test_every_field_has_its_meaning() -> None:
    assert ROWS.keys() == {f.name for f in dataclasses.fields(Settings)} and all(
        row["meaning"] for row in ROWS.values()
    )


def test_every_number_has_a_lowest_value() -> None:
    for f in dataclasses.fields(Settings):
        numbers = any(kind in str(f.type) for kind in ("int", "float"))
        assert not numbers or f.name == "scale" or "least" in ROWS[f.name], f.name  # scale has its own check


def test_settings_are_frozen_and_survive_json() -> None:
    settings = Settings(data="x", model_args={"a": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lr = 1
    saved = json.loads(json.dumps(settings.to_dict()))
    assert settings.differences(saved) == []
    assert settings.replace(log_every=7, out="y", workers=3).differences(saved) == []
    assert settings.replace(lr=1.0, crop=(1, 2)).differences(saved) == ["crop", "lr"]
    assert settings.differences(saved | {"gone": 1}) == ["gone"]
    del saved["offset_lr_mult"]  # an older run, whose offsets learned at the common rate
    assert settings.differences(saved) == ["offset_lr_mult"]


def test_the_description_has_every_setting_as_the_command_line_takes_it() -> None:
    lines = [line.split(maxsplit=1) for line in describe().splitlines() if line.startswith("  ")]
    words = [word for word, _ in lines]
    assert [word.partition("=")[0] for word in words] == [f.name for f in dataclasses.fields(Settings)]
    assert parse_overrides(words) == Settings()
    assert [line for line in describe().splitlines() if line.endswith(":")] == [f"{title}:" for title in TABLE]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rare_classes": (1,)}, ["rare_classes does nothing without rare_prob: set both"]),
        ({"rare_prob": 0.5}, ["rare_prob does nothing without rare_classes: set both"]),
        ({"rare_classes": (1,), "rare_prob": 0.5}, []),
        ({}, []),
    ],
)
def test_half_of_a_pair_of_settings_is_told(changes: dict, says: list[str], caplog) -> None:
    with caplog.at_level("WARNING", "fapn_zoo"):
        _check_rare_classes(Settings(**changes), LabelMap(("ground", "disc")))
    assert caplog.messages == says
