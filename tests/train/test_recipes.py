"""Recipes: finding, running and listing them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fapn_zoo.train.recipes import list_recipes
from fapn_zoo.train.settings import Settings, load_recipe

pytestmark = pytest.mark.unit
SHIPPED = Path(__file__).resolve().parents[2] / "recipes"
HEAD = "from fapn_zoo.train.settings import Settings\ndef recipe():\n    return "


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `recipes` in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    return Path("recipes")


def test_recipes_are_found_and_checked(recipes: Path) -> None:
    (recipes / "my_net.py").write_text(f"{HEAD}Settings(steps=7)\n")
    Path("empty.py").write_text("x = 1\n")
    Path("wrong.py").write_text("def recipe():\n    return {'steps': 7}\n")
    assert load_recipe("my_net").steps == 7
    assert load_recipe("recipes/my_net.py").steps == 7
    with pytest.raises(FileNotFoundError, match="no recipe named 'my_nte'; nearest: my_net; found: .*my_net"):
        load_recipe("my_nte")
    with pytest.raises(FileNotFoundError, match=r"no recipe file other\.py; found: .*my_net"):
        load_recipe("other.py")
    for name in ("empty.py", "wrong.py"):
        with pytest.raises(ValueError, match=f"{name} must define recipe"):
            load_recipe(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def recipe(:\n", r"a\.py: SyntaxError: invalid syntax \(a\.py, line 1\)"),
        (f"{HEAD}Settings(stepz=7)\n", r"a\.py, line 3: TypeError: .*stepz"),
        (f"{HEAD}Settings(steps=-7)\n", r"a\.py, line 3: ValueError: steps must be at least 0, got -7"),
        (f"import no_such_thing\n{HEAD}Settings()\n", r"a\.py, line 1: ModuleNotFoundError: .*no_such_thing"),
    ],
)
def test_a_recipe_that_fails_is_named_with_the_line(recipes: Path, text: str, message: str) -> None:
    Path("a.py").write_text(text)
    with pytest.raises(ValueError, match=f"^{message}"):
        load_recipe("a.py")


def test_the_list_reads_recipes_and_runs_none(recipes: Path) -> None:
    for name, text in {
        "a": f'"""The first.\n\nMore.\n"""\n{HEAD}1 / 0\n',
        "b": f"{HEAD}Settings()\n",
        "c": "def recipe(:\n",
        "d": "x = 1\n",
        "e": "\0",
        "finetune_folder": f'"""My own."""\n{HEAD}Settings()\n',
        "_part": "def broken(:\n",
    }.items():
        (recipes / f"{name}.py").write_text(text)
    (recipes / "f.py").write_bytes(b"# \xff\n")
    (recipes / "g.py").mkdir()
    found = list_recipes()
    titles = {path.stem: title for path, title in found.items() if path.parent == recipes}
    assert titles.pop("e").startswith("broken: ") and titles.pop("f") == "no docstring"
    assert titles.pop("g").startswith("broken: [Errno")
    assert titles == {
        "a": "The first.",
        "b": "no docstring",
        "c": "broken: invalid syntax (c.py, line 1)",
        "d": "no docstring",
        "finetune_folder": "My own.",
    }
    assert SHIPPED / "perpixel_fapn_resnet18_slim_camvid.py" in found


def test_every_shipped_recipe_makes_settings() -> None:
    recipes = {path: title for path, title in list_recipes().items() if path.resolve().parent == SHIPPED}
    assert len(recipes) == len(list(SHIPPED.glob("[!_]*.py"))) > 0
    for path, title in recipes.items():
        assert isinstance(load_recipe(str(path)), Settings) and title.endswith(".") and title[:6] != "broken"


def test_the_second_stage_of_the_embedded_model_builds_on_the_first() -> None:
    name = "perpixel_fapn_resnet18_slim_camvid"
    first, second = load_recipe(name), load_recipe(f"{name}_balanced")
    changed = {"val_data", "val_split", "scale", "class_weights", "steps", "lr", "warmup_steps", "ema"}
    changed |= {"checkpoint_every", "out"}
    a, b = first.to_dict(), second.to_dict()
    assert {key for key in a if a[key] != b[key]} == changed
