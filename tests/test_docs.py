"""The pages say what the code does: links lead somewhere, code runs, commands parse, numbers are those of the files."""

from __future__ import annotations

import ast
import csv
import functools
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import pytest
from toys import coco

import fapn_zoo
from fapn_zoo.cli import _parser as command_line
from fapn_zoo.cli import main
from fapn_zoo.train.settings import load_recipe, parse_overrides
from fapn_zoo.zoo.labels import list_label_sets
from fapn_zoo.zoo.parts import BACKBONES, HEADS, NECKS
from fapn_zoo.zoo.registry import get_spec, list_models, resolve
from fapn_zoo.zoo.spec import DataSpec

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "hub" / "results"
EMBEDDED = "perpixel_fapn_resnet18_slim_camvid"
SIZE = (64, 96)
# Verbs whose lines are run as they stand, on the files of `workplace`. The others load models of full size, ask the
# network or take long, and have tests of their own; their lines are parsed.
CHEAP = {"check-data", "compare", "eval", "info", "list", "predict", "visualize"}
ON_LARGE_MODELS = "--task"  # panoptic and instance scores ask for a MaskFormer
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


class Block(NamedTuple):
    """A fenced block: the first word behind the fence, what follows it, its text, and the line where it starts."""

    language: str
    note: str
    text: str
    line: int


@functools.cache
def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[Block]:
    """The fenced blocks of a language, in order."""
    text = read(page)
    found = re.finditer(r"^```(\w*) ?(.*)\n((?:.*\n)*?)```$", text, flags=re.M)
    every = [Block(m[1], m[2], m[3], text[: m.start()].count("\n") + 2) for m in found]
    assert text.count("```") == 2 * len(every), f"{page}: a fence that is not closed"
    assert {block.language for block in every} <= {"", "bash", "python"}, page
    return [block for block in every if block.language == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", read(page), flags=re.M)


# Links --------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if link.startswith("http"):
            parts = urlparse(link)
            assert parts.scheme == "https" and "." in parts.netloc, link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file() and target.is_relative_to(ROOT), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_page_can_be_reached() -> None:
    for index in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        linked = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", prose(index))}
        assert set((ROOT / "docs").glob("*.md")) - linked - {ROOT / "docs" / "README.md"} == set(), index


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:hub|recipes|tests|docs)/[\w./-]+)`", prose(page))
    assert all((ROOT / name).exists() for name in named), [n for n in named if not (ROOT / n).exists()]
    rooms = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", prose(page)) if page.name == "CONTRIBUTING.md" else []
    assert all((ROOT / name).exists() or (ROOT / "fapn_zoo" / name).exists() for name in rooms), rooms


# Python -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of: images, a data folder, and weights folders of a tiny model."""
    from PIL import Image

    from fapn_zoo.data.scenes import CLASSES, PALETTE, generate_scene

    place = tmp_path_factory.mktemp("docs")
    scenes = iter(range(100))

    def put(name: str, labels: str | None = None) -> None:
        scene = generate_scene(next(scenes), SIZE)
        for file, pixels in ((name, scene.image), (labels, scene.semantic)):
            if file is not None:
                (place / file).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(place / file)

    for name in ("street.jpg", "more.png", "map.tif", "photos/a.jpg", "photos/b.png", "demo/scenes/scene_1.png"):
        put(name)
    for split in ("train", "val", "test"):
        for i in range(2):
            put(f"streets/{split}/images/{i}.png", f"streets/{split}/labels/{i}.png")
    for i in range(4):
        put(f"towns/rgb/{i}.png", f"towns/masks/{i}_mask.png")
    table = {"names": list(CLASSES), "palette": [list(colour) for colour in PALETTE], "ignore_index": 255}
    for name in ("streets", "towns"):
        (place / name / "classes.json").write_text(json.dumps(table))
    coco.write_splits(place / "cells")
    tiny = fapn_zoo.create_model(EMBEDDED, backbone_channels=(8, 8, 8, 8), neck_out_channels=8)
    for name in ("MODEL", "A", "B", "runs/mine/model", "weights/mine"):
        tiny.save(place / name)
    kinds = DataSpec(labels=("kind 1", "kind 2", "kind 3"), things=(0, 1, 2), size_divisor=32)
    small = {"backbone": "test_efficientnet", "neck_out_channels": 16, "head_hidden": 16}
    fapn_zoo.create_model("faster_rcnn_fpn", num_classes=3, data=kinds, **small).save(place / "runs/cells/model")
    (place / "recipes").symlink_to(ROOT / "recipes")
    return place


@pytest.fixture
def inside(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs the test in that folder, without a network."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", _no_network)
    return workplace


def _no_network(*_: Any) -> None:
    raise AssertionError("a block of the pages asked for the network")


@each_page
def test_python_runs(page: Path, inside: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        if not block.note:
            # blank lines in front, so that a traceback shows the page's own line
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)


def test_python_that_is_not_run_fits_the_code() -> None:
    unrun = [(page, block) for page in PAGES for block in blocks(page, "python") if block.note]
    assert len(unrun) <= 3
    for page, block in unrun:
        assert re.fullmatch(r"no-run: \w.{10,}", block.note), f"{page.name}: {block.note!r} gives no reason"
        calls = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)]
        assert calls
        for call in calls:
            path = ast.unparse(call.func).split(".")
            assert path[0] == "fapn_zoo", f"{page.name}: cannot check {ast.unparse(call)}"
            function = functools.reduce(getattr, path[1:], fapn_zoo)
            given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
            inspect.signature(function).bind(*call.args, **given)
            assert set(given) <= set(inspect.signature(function).parameters), ast.unparse(call)
            if function is fapn_zoo.create_model and not (name := ast.literal_eval(call.args[0])).startswith("hf-hub:"):
                get_spec(name)


def test_eight_lines_are_eight_and_print_what_they_say() -> None:
    from fapn_zoo.data.scenes import generate_scene

    first = blocks(ROOT / "README.md", "python")[0].text
    assert sum(bool(line.strip()) for line in first.splitlines()) <= 8
    model = fapn_zoo.create_model(EMBEDDED, pretrained=True)
    shares = model.predict(generate_scene(1).image).class_shares()  # the demo's first scene
    (a, most), (b, second) = list(shares.items())[:2]
    assert f'{{"{a}": {most:.2f}, "{b}": {second:.2f}, ...}}' in first


# Commands -----------------------------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of the bash blocks; lines are joined at a backslash and cut at && and comments."""
    for block in blocks(page, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield words[:end]
                words = words[end + 1 :]


def our_words(words: list[str]) -> list[str] | None:
    """What the command line of fapn-zoo gets of a command; None where it is another program's."""
    if words[0] == "fapn-zoo":
        return words[1:]
    return words[words.index("fapn_zoo.cli") + 1 :] if "fapn_zoo.cli" in words else None


@each_page
def test_commands_parse(page: Path) -> None:
    for words in commands(page):
        ours = our_words(words)
        if ours is not None:
            args = command_line().parse_args(ours)
            if ours[0] == "train":
                parse_overrides(args.settings, load_recipe(Path(args.recipe).stem))
        elif "python" in words:
            assert (ROOT / words[words.index("python") + 1]).is_file(), words
        else:
            assert words[0] in ("pip", "pytest", "ruff"), words


def test_commands_in_the_text_of_the_front_page_parse() -> None:
    found = re.findall(r"`fapn-zoo ([^`]+)`", prose(ROOT / "README.md"))
    assert len(found) >= 5
    for text in found:
        command_line().parse_args(shlex.split(text))


@each_page
def test_cheap_commands_run(page: Path, inside: Path, capsys: pytest.CaptureFixture) -> None:
    for words in commands(page):
        ours = our_words(words)
        if ours is None or words[0] != "fapn-zoo" or "hf:OWNER" in " ".join(ours):  # which wants a network
            continue
        if ours[0] in CHEAP and ON_LARGE_MODELS not in ours:
            assert main(ours) == 0, (words, capsys.readouterr().err)
        elif ours[:2] == ["train", "finetune_folder"] and "backbone" not in "".join(ours):  # whose weights are not here
            short = ["steps=1", "batch_size=2", "crop=32", "overwrite=true", "out=runs/short"]
            assert main([*ours, *short]) == 0, (words, capsys.readouterr().err)


def test_setting_up_is_two_commands_at_the_top() -> None:
    first = blocks(ROOT / "README.md", "bash")[0]
    assert first.line < 20
    lines = [line.partition("#")[0].strip() for line in first.text.splitlines()]
    assert lines == ["pip install . && fapn-zoo demo", 'pip install -e ".[test]" && pytest']


# Facts --------------------------------------------------------------------------------------------------------------


def test_named_parts_exist() -> None:
    text = read(ROOT / "docs" / "models.md")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    for row, known in {"heads": HEADS, "necks": NECKS, "label sets": list_label_sets()}.items():
        assert set(re.findall(r"`([a-z0-9_]+)`", rows[row])) <= set(known)
    assert {"resnet101", "swin_t", "mobilenetv4_s"} <= set(BACKBONES)


def rows(name: str) -> list[dict[str, str]]:
    with open(RESULTS / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def says(page: str, *words: str) -> None:
    """The page has these words, wherever its lines end."""
    text = " ".join(read(ROOT / page).split())
    for phrase in words:
        assert phrase in text, f"{page} does not say: {phrase}"


def test_numbers_of_the_embedded_model() -> None:
    of_run = {row["weights"]: row for row in rows("semantic") if row["weights"].startswith("runs/")}
    fapn, fpn = (of_run[f"runs/{neck}/model"] for neck in ("fapn", "fpn"))
    whole = float(fpn["miou"]) - float(fapn["miou"])
    near = float(fapn["band_3"]) - float(fpn["band_3"])
    says("docs/embedded-model.md", f"over all pixels, by {whole:.1f}", f"3 pixels of a boundary, by {near:.1f}")
    weights = next((ROOT / "fapn_zoo" / "weights" / "embedded" / EMBEDDED).glob("*.safetensors"))
    says("docs/embedded-model.md", f"{weights.stat().st_size / 1e6:.1f} MB", "4500 steps", "1400 steps")
    for name, steps in ((EMBEDDED, 4500), (f"{EMBEDDED}_balanced", 1400)):
        assert load_recipe(name).steps == steps
    cells = {row["model"]: row for row in rows("objects") if row["weights"] == "embedded"}
    masks, boxes = ("ap", "ap50", "ap75", "box_ap", "box_ap50"), ("box_ap", "box_ap50")
    for kind, keys in (("nuclei", masks), ("blood_cells", boxes)):
        [row] = [row for name, row in cells.items() if name.endswith(kind)]
        says("docs/embedded-model.md", " | ".join(f"{float(row[key]):.1f}" for key in keys))
    score = {row["amp"]: row["miou"] for row in rows("semantic") if row["weights"] == EMBEDDED}
    share = float(rows("precision")[0]["ratio"])
    says("docs/predict.md", f"{score['bf16']} mIoU instead of {score['no']} that way, in {share:.1f} of the time")


def test_numbers_of_the_speed() -> None:
    times = {(row["model"], row["manner"]): float(row["ms"]) for row in rows("models_speed")}
    twins = [(ms, times.get((model.replace("_fapn_", "_fpn_"), manner))) for (model, manner), ms in times.items()]
    costs = [ms / other for ms, other in twins if other not in (None, ms)]
    says("docs/speed.md", f"A FaPN costs {min(costs):.1f} to {max(costs):.1f} times its FPN twin")
    ratio = {(row["task"], row["contender"]): float(row["ratio"]) for row in rows("metrics_speed")}
    theirs, unchecked = ratio["miou", "torchmetrics"], ratio["miou", "torchmetrics, no validation"]
    says("docs/speed.md", f"{theirs:.0f} times as fast as torchmetrics' ({unchecked:.0f} times without its validation)")
    maps, files = (ratio[task, "panopticapi's rules"] for task in ("pq, maps", "pq, png, 2 threads"))
    says("docs/speed.md", f"{maps:.0f} times as fast as panopticapi's rules in numpy ({files:.2f} times from PNG")
    boundaries = ("bands", "boundary iou", "boundary f-score")
    loops = [value for (task, who), value in ratio.items() if task in boundaries and who != "ours"]
    says("docs/speed.md", f"{min(loops):.0f} to {max(loops):.0f} times as fast as loops")


def test_numbers_of_the_data() -> None:
    found = {(row["kind"], row["way"]): row for row in rows("data_opening")}
    seconds = {kind: row["cpu_seconds"] for (kind, way), row in found.items() if way == "open"}
    theirs = [found["coco", way] for way in ("pycocotools", "torchvision")]
    says(
        "docs/speed.md",
        f"label PNGs opens in {seconds['folder']} s and {float(found['folder', 'open']['peak_mib']):.0f} MiB",
        f"YOLO in {seconds['yolo']} s, Pascal VOC in {seconds['voc']} s, LabelMe in {seconds['labelme']} s",
        f"{seconds['coco']} s and {float(found['coco', 'open']['peak_mib']):.0f} MiB",
        " and ".join(row["times_cpu_seconds"] for row in theirs) + f" times the time and {theirs[0]['times_peak_mib']}",
    )
    peers = [row for row in rows("loader_speed") if row["contender"] != "ours"]
    for size in ("360x480", "1224x1632"):
        low, high = sorted(row["times_ours_cpu"] for row in peers if row["size"] == size)
        assert float(low) >= 1.5
        says("docs/speed.md", f"{low} to {high} times")


def test_numbers_of_the_official_weights() -> None:
    from toys.golden_rule import NOISE_FACTOR

    official = [name for name in list_models(pretrained=True) if resolve(name, weights=True)[1].source != "embedded"]
    detectors = [name for name in official if "rcnn" in name or name.startswith("panoptic_")]
    inside = [name for name in official if name.startswith("eomt_")]
    says("docs/weights.md", f"{len(official)} official weights load by name: {len(inside)} of EoMT")
    says("docs/weights.md", f"{len(official) - len(detectors) - len(inside)} of the MaskFormer and FaPN papers")
    kinds = "Faster R-CNN, Mask R-CNN, PointRend R-CNN, Panoptic FPN and Panoptic FCN"
    says("docs/weights.md", f"{len(detectors)} of {kinds} on COCO")
    says("docs/weights.md", f"within {NOISE_FACTOR} times the rounding noise")
    metrics = get_spec("maskformer_fapn_swin_l_ade20k")[0].weights.values()
    assert 55.2 in next(iter(metrics)).metrics.values()
