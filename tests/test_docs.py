"""The README says what the code and the result files say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import fapn_zoo
from fapn_zoo.cli.main import _parser
from fapn_zoo.zoo.backbones import BACKBONES
from fapn_zoo.zoo.labels import list_label_sets
from fapn_zoo.zoo.parts import HEADS, NECKS

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_scores_are_those_of_the_result_file():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "hub" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.updated(TEXT) == TEXT, "run python hub/tables.py"


def test_named_parts_exist():
    rows = {line.split("|")[1].strip(): line for line in TEXT.splitlines() if line.startswith("| ")}
    for row, known in {"heads": HEADS, "necks": NECKS, "label sets": list_label_sets()}.items():
        assert set(re.findall(r"`([a-z0-9_]+)`", rows[row])) <= set(known)
    assert {"resnet101", "swin_t", "mobilenetv4_s"} <= set(BACKBONES)
    for name in re.findall(r'create_model\("((?:maskformer|perpixel)[a-z0-9_]+)"', TEXT):
        fapn_zoo.zoo.registry.get_spec(name)


def test_commands_parse():
    commands = re.findall(r"^fapn-zoo ([a-z].*?)(?: +#.*)?$", TEXT, flags=re.M)
    assert len(commands) >= 5
    for command in commands:
        _parser().parse_args(command.split())
