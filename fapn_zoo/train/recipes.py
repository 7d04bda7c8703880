"""Recipes: Python files whose `recipe()` returns the settings of a run, and the official trainings in official.json."""

from __future__ import annotations

import ast
import importlib.util
import json
import traceback
from importlib.resources import files
from pathlib import Path
from typing import Any

from fapn_zoo.zoo.registry import get_spec, list_models, nearest

PREFIX = "official/"
TRAININGS = json.loads((files("fapn_zoo") / "train" / "official.json").read_text(encoding="utf-8"))["trainings"]


def recipe_folders() -> list[Path]:
    """Where bare recipe names are looked up, in order: ./recipes, and `recipes` inside and beside the package."""
    package = Path(__file__).resolve().parent.parent
    found: dict[Path, Path] = {}
    for folder in (Path("recipes"), package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def list_recipes() -> dict[Path, str]:
    """The recipes that bare names lead to, in the order of the folders, and the first line of each docstring.

    Of a file that cannot be read, it is what is wrong with it. None of them is run.
    """
    return {path: _title(path) for path in _files().values()}


def _files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("[!_]*.py")):
            found.setdefault(path.stem, path)
    return found


def _title(path: Path) -> str:
    try:
        docstring = ast.get_docstring(ast.parse(path.read_bytes(), path.name))
    except (OSError, SyntaxError, ValueError) as error:
        return f"broken: {error}"
    return docstring.splitlines()[0] if docstring else "no docstring"


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe; see `fapn_zoo.train.settings.load_recipe`."""
    known = _files()
    found = f"found: {', '.join(sorted(known)) or 'none'}"
    given = name_or_path.endswith(".py")
    path = Path(name_or_path) if given else known.get(name_or_path)
    if path is not None and path.is_file():
        return path
    if given:
        raise FileNotFoundError(f"no recipe file {path}; {found}")
    raise FileNotFoundError(f"no recipe named {name_or_path!r}{nearest(name_or_path, sorted(known))}; {found}")


def run_recipe(path: Path) -> Any:
    """What `recipe()` of a file returns, None where it has no such function.

    Raises ValueError, which names the file and the line, where the file cannot be run.
    """
    spec = importlib.util.spec_from_file_location(f"fapn_zoo_recipe_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        recipe = getattr(module, "recipe", None)
        return recipe() if callable(recipe) else None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == spec.origin]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error


def trainings(model: str) -> dict[str, dict[str, Any]]:
    """Schedule -> the settings of the official training of a model of the zoo; nothing where none is known."""
    spec = get_spec(model)[0]
    for row in TRAININGS:
        known = spec.head in row["heads"] and (not row["backbones"] or spec.backbone in row["backbones"])
        if known and spec.name.endswith(row["ending"]):
            return row["schedules"]
    return {}


def official_settings(name: str) -> dict[str, Any]:
    """The settings of `official/MODEL`, or `official/MODEL.SCHEDULE`; without one, that of the model's first weights.

    ValueError for a model that has no official training, or not that one; it lists those that it has.
    """
    model, _, schedule = name.removeprefix(PREFIX).partition(".")
    found = trainings(model)
    if not found:
        known = ", ".join(known for known in list_models() if trainings(known))
        raise ValueError(f"no official training of {model!r} is known; there are {known}")
    if schedule and schedule not in found:
        raise ValueError(f"{model!r} has no official training {schedule!r}; it has {', '.join(found)}")
    first = next(iter(get_spec(model)[0].weights), "")
    schedule = schedule or (first if first in found else next(iter(found)))
    common = {"model": model, "pretrained_backbone": True, "amp": "no", "out": f"runs/{model}.{schedule}"}
    return common | found[schedule]
