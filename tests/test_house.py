"""The plan of the house, read off every import: which room may import which, and no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fapn_zoo

pytestmark = pytest.mark.unit
PACKAGE = Path(fapn_zoo.__file__).parent

# From the top to the bottom; a room imports only what stands below its own line.
FLOORS = (
    ("cli",),
    ("export",),
    ("train", "benchmark"),
    ("create",),
    ("evaluate", "convert"),
    ("visualize", "model"),
    ("predict",),
    ("tasks",),
    ("postprocess",),
    ("modules", "metrics"),
    ("data", "weights"),
    ("zoo", "runtime"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What a room, or a part of one, never imports, whatever stands below it.
NEVER = {
    "zoo": ("torch",),
    "modules": ("fapn_zoo.zoo.spec", "fapn_zoo.data", "fapn_zoo.weights"),
    "postprocess": ("fapn_zoo.data", "fapn_zoo.metrics"),
    "metrics": ("fapn_zoo.modules.heads",),
    "": ("hub", "recipes", "tests", "detectron2"),
}
ALLOWED = {("modules.backbones.imagenet", "fapn_zoo.weights")}  # ImageNet weights are fetched and verified there


def modules(root: Path) -> dict[str, Path]:
    """Every module of a package below its name: ``predict.run`` -> its file; a package by its folder's name."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(file: Path, known: dict[str, Path], package: str = "fapn_zoo") -> Iterator[tuple[int, str]]:
    """(line, full name) of every import, those inside functions too; `from a import b` is `a.b` if that is a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inside = full.removeprefix(f"{package}.") in known and full.startswith(f"{package}.")
                yield node.lineno, full if inside else node.module


def public_names(root: Path) -> dict[str, str]:
    """What the package itself offers -> the module that holds it."""
    tree = ast.parse((root / "__init__.py").read_text(encoding="utf-8"))
    tables = [n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "_PUBLIC"]
    return ast.literal_eval(tables[0]) if tables else {}


def wrong_arrows(root: Path) -> list[str]:
    known, wrong = modules(root), []
    for name, file in known.items():
        room = name.partition(".")[0]
        if not name:
            continue
        assert room in FLOOR, f"{file}: {room} is no room of the plan"
        for line, target in imports(file, known):
            inside = target.removeprefix("fapn_zoo.") if target.startswith("fapn_zoo.") else ""
            to = inside.partition(".")[0]
            up = bool(to) and to in FLOOR and to != room and FLOOR[to] <= FLOOR[room]
            never = [word for where in (room, "") for word in NEVER.get(where, ()) if within(target, word)]
            never = [word for word in never if (name, word) not in ALLOWED]
            if up or never:
                wrong.append(f"{name}:{line} imports {target}")
    return wrong


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def circles(root: Path) -> list[list[str]]:
    """Files that import each other in a ring, by whatever way; packages stand for their ``__init__``."""
    known = modules(root)
    arrows = {
        name: {
            target.removeprefix("fapn_zoo.")
            for _, target in imports(file, known)
            if target.removeprefix("fapn_zoo.") in known and target.startswith("fapn_zoo.")
        }
        - {name}
        for name, file in known.items()
    }
    found, done = [], set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append([*way[way.index(name) :], name])
        elif name not in done:
            for target in sorted(arrows[name]):
                walk(target, [*way, name])
            done.add(name)

    for name in known:
        walk(name, [])
    return found


def test_rooms_import_only_what_stands_below_them():
    assert wrong_arrows(PACKAGE) == []


def test_no_file_imports_itself_by_way_of_others():
    assert circles(PACKAGE) == []


def test_the_root_is_short_and_every_room_is_in_the_plan():
    entries = {p.stem for p in PACKAGE.iterdir() if p.name != "__pycache__" and not p.name.startswith(".")}
    assert entries - {"recipes"} == {*FLOOR, "__init__"} and len(entries) < 20  # recipes: packed into wheels


@pytest.mark.parametrize("limit, what", [(400, "file"), (60, "function")])
def test_nothing_is_long(limit: int, what: str):
    for name, file in modules(PACKAGE).items():
        text = file.read_text(encoding="utf-8")
        if what == "file":
            assert text.count("\n") <= limit, f"{name} has {text.count(chr(10))} lines"
            continue
        for node in ast.walk(ast.parse(text)):
            kernels = file.stem.endswith("kernels")
            if isinstance(node, ast.FunctionDef) and not kernels:
                lines = node.end_lineno - node.lineno + 1
                assert lines < limit, f"{name}.{node.name} has {lines} lines"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package's imports without its code."""
    root = tmp_path / "fapn_zoo"
    for file in modules(PACKAGE).values():
        target = root / file.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    "file, line",
    [
        ("postprocess/masks.py", "from fapn_zoo.predict import predict"),
        ("tasks/objects.py", "def late():\n    from fapn_zoo.predict.run import answers"),
        ("zoo/spec.py", "import torch"),
        ("modules/necks/fapn.py", "from fapn_zoo import data"),
        ("modules/necks/fpn.py", "from fapn_zoo.zoo.spec import DataSpec"),
        ("runtime/files.py", "if True:\n    import fapn_zoo.zoo.spec\nimport fapn_zoo.cli.main"),
        ("train/loop.py", "import fapn_zoo.benchmark.run"),
        ("evaluate/report.py", "from hub import tables"),
    ],
)
def test_a_planted_import_is_found(copy: Path, file: str, line: str):
    before = wrong_arrows(copy)
    with (copy / file).open("a", encoding="utf-8") as handle:
        handle.write(f"\n{line}\n")
    name = file.removesuffix(".py").replace("/", ".")
    assert before == [] and [entry for entry in wrong_arrows(copy) if entry.startswith(f"{name}:")]


def test_a_planted_circle_is_found(copy: Path):
    with (copy / "tasks/protocol.py").open("a", encoding="utf-8") as handle:
        handle.write("\ndef late():\n    from fapn_zoo.tasks import semantic\n")
    assert any({"tasks.protocol", "tasks.semantic"} <= set(ring) for ring in circles(copy))
