"""Pictures by matplotlib (extra `viz`): plots of an evaluation's report, and panels beside each other."""

from __future__ import annotations

import contextlib
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.runtime.files import write_whole
from fapn_zoo.tasks import fonts
from fapn_zoo.tasks.result import Result

NAMED = 60  # classes whose names still fit beside a confusion matrix
DPI = 110
WIDTHS = (3.0, 6.0)  # of a panel in inches, at least and at most; between them a pixel of the image is one of the file
WRONG = (230, 30, 30)

Panel = tuple[Any, str, str]  # a picture (H, W, 3) uint8 or of Pillow, words over it, words under it


def require_matplotlib() -> None:
    """ValueError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        how = "install it with: pip install 'fapn-zoo[viz]'"
        raise ValueError(f"plots need matplotlib ({error}); {how}") from None


@contextlib.contextmanager
def written_figure(size: tuple[float, float], words: Sequence[str], path: Path) -> Iterator[Any]:
    """A figure of matplotlib's, (width, height) in inches, which becomes a .png file at the end, whole or not at all.

    Inside the block it has letters for all of these words, as far as a font of the machine has them.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure  # not pyplot: no windows, no state

    foreign = itertools.chain.from_iterable(word.split() for word in words if not word.isascii())
    families = []
    for file in sorted(set(map(fonts.font_of, foreign)) - {fonts.OWN, None}):
        font_manager.fontManager.addfont(file)
        families.append(font_manager.FontProperties(fname=file).get_name())
    with matplotlib.rc_context({"font.family": [*matplotlib.rcParams["font.family"], *families]}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        write_whole(path, lambda file: figure.savefig(file, format="png", dpi=DPI))


def drawable(names: Sequence[str]) -> list[str]:
    """Class names as matplotlib can draw them: before 3.11 it neither joins letters nor turns lines around."""
    from matplotlib import ft2font

    return fonts.class_names(names, shaping=hasattr(ft2font, "__libraqm_version__"))


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion matrix in percent of the true pixels of each class.

    Args:
        counts: (K, K) or (K, K + 1) pixels of (true, predicted); the extra column is for answers of no class.
        names: of the K classes.
        path: a .png file, written whole.
    """
    names = drawable(names)
    columns = [*names, "other"][: counts.shape[1]]
    truth = counts.sum(1, keepdims=True)
    shares = np.divide(100.0 * counts, truth, out=np.full(counts.shape, np.nan), where=truth > 0)
    side = min(max(4.5, 0.28 * len(names)), 16)
    with written_figure((side + 2.5, side + 1), names, path) as figure:
        axes = figure.add_subplot()
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        figure.colorbar(drawn, ax=axes, label="% of the true pixels", shrink=0.8)
        axes.set(xlabel="predicted", ylabel="true")
        if len(names) <= NAMED:
            axes.set_xticks(range(len(columns)), columns, rotation=90)
            axes.set_yticks(range(len(names)), names)
        if len(names) <= 20:
            for row, column in np.argwhere(shares >= 0.5):  # NaN is not
                style = {"color": "white" if shares[row, column] > 60 else "black", "fontsize": 7}
                axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", **style)


def plot_classes(
    classes: Sequence[Mapping[str, Any]], score: str, label: str, mean: float | None, title: str, path: Path
) -> None:
    """A score of every class as a bar, best first, and the mean; where measured, the IoU of the 5 px band.

    Args:
        classes: a row of a report per class: "name", the score, and "band_5" where it was measured; 0..1 or None.
        score, label: what the score is called in the rows, and in the plot.
        mean: of the score, 0..1; None where it is undefined.
        path: a .png file, written whole.
    """
    names, title = drawable([row["name"] for row in classes]), fonts.spelled(title)
    named = [row | {"name": name} for row, name in zip(classes, names, strict=True) if row[score] is not None]
    rows = sorted(named, key=lambda row: row[score])
    with written_figure((7, min(max(2.5, 0.24 * len(rows) + 1.2), 60)), [*names, title], path) as figure:
        axes = figure.add_subplot()
        axes.barh(range(len(rows)), [100 * row[score] for row in rows], color="tab:blue", label=label)
        near = [(100 * row["band_5"], place) for place, row in enumerate(rows) if row.get("band_5") is not None]
        if near:
            axes.scatter(*zip(*near, strict=True), color="black", s=14, zorder=3, label="IoU, 5 px band")
        if mean is not None:
            axes.axvline(100 * mean, color="tab:orange", label=f"mean {100 * mean:.2f}")
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.set(xlim=(0, 100), ylim=(-0.6, len(rows) - 0.4), xlabel="%", title=title)
        axes.legend(loc="lower right")


def plot_curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: Path) -> None:
    """Curves over the steps of a training, one panel under the other; those without a point are left out.

    Args:
        panels: what the panel shows -> name of a curve -> its (step, value). path: a .png file, written whole.
    """
    held = {over: {name: points for name, points in curves.items() if points} for over, curves in panels.items()}
    held = {over: curves for over, curves in held.items() if curves}
    if not held:
        return
    with written_figure((8, 2.6 * len(held)), [], path) as figure:
        for axes, (over, curves) in zip(
            figure.subplots(len(held), squeeze=False, sharex=True)[:, 0], held.items(), strict=True
        ):
            for name, points in curves.items():
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 40 else "")
            axes.set(ylabel=over or next(iter(curves)))
            axes.legend(fontsize=8, ncols=1 + len(curves) // 8)
        axes.set(xlabel="step")


def write_panels(
    rows: Sequence[Sequence[Panel]], title: str, path: Path, legend: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Writes rows of panels, all of one size, as a .png file.

    Args:
        title: over all of them. legend: what colours (RGB, 0..255) mean; names as `drawable` gives them.
    """
    from matplotlib.patches import Patch

    title, legend, columns = fonts.spelled(title), legend or {}, max(map(len, rows))
    height, width = np.asarray(rows[0][0][0]).shape[:2]
    side = min(max(width / DPI, WIDTHS[0]), WIDTHS[1])
    size = columns * (side + 0.1), len(rows) * (side * height / width + 0.7) + 0.4 + 0.2 * (len(legend) // columns + 1)
    words = [words for row in rows for panel in row for words in panel[1:]]
    with written_figure(size, [title, *words, *legend], path) as figure:
        figure.suptitle(title)
        for places, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
            for place, panel in itertools.zip_longest(places, row):
                if panel is None:
                    place.set_axis_off()
                    continue
                picture, over, under = (panel[0], *(textwrap.fill(text, round(13 * side)) for text in panel[1:]))
                place.imshow(np.asarray(picture))
                place.set_title(over, fontsize=10)
                place.set(xticks=[], yticks=[], xlabel=under)
        patches = [Patch(color=[c / 255 for c in colour], label=name) for name, colour in legend.items()]
        if patches:
            figure.legend(handles=patches, loc="outside lower left", ncols=columns, frameon=False)


def write_answer(
    image: np.ndarray, found: np.ndarray, truth: np.ndarray, labels: LabelMap, ignore_index: int, title: str, path: Path
) -> None:
    """Writes prediction, truth, and where they differ, one beside the other, as a .png file.

    Args:
        image: (H, W, 3) uint8.
        found, truth: (H, W) ids; without colour where they are no class of `labels`.
        ignore_index: truth that is not scored, and never an error.
    """
    scores, style = np.zeros(found.shape, np.float32), (labels.names, labels.palette, ignore_index)
    maps = {"prediction": found, "truth": truth}
    row = [(Result(image, ids, scores, [], *style).overlay(alpha=0.6), name, "") for name, ids in maps.items()]
    write_panels([[*row, (marked_errors(image, found, truth, ignore_index), "errors", "")]], title, path)


def marked_errors(image: np.ndarray, found: np.ndarray, truth: np.ndarray, ignore_index: int) -> np.ndarray:
    """(H, W, 3) uint8: the image in grey, darker where the truth is ignored, and `WRONG` where ids differ elsewhere."""
    errors = np.repeat(image.mean(2, keepdims=True) * 0.6 + 60, 3, axis=2)
    ignored = truth == ignore_index
    errors[ignored] *= 0.35
    errors[(found != truth) & ~ignored] = WRONG
    return errors.astype(np.uint8)
