"""Pictures of an evaluation: plots of its report, by matplotlib (extra `viz`), and panels of one of its images."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fapn_zoo.data.labels import LabelMap
from fapn_zoo.runtime.files import write_whole
from fapn_zoo.tasks import fonts
from fapn_zoo.tasks.result import Result
from fapn_zoo.visualize import drawing

NAMED = 60  # classes whose names still fit beside a confusion matrix
DPI = 110
LONGEST = 1024  # side of a panel, in pixels
GAP = 6
WRONG = (230, 30, 30)


def require_matplotlib() -> None:
    """ValueError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        how = "install it with: pip install 'fapn-zoo[viz]'"
        raise ValueError(f"plots need matplotlib ({error}); {how}") from None


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion matrix in percent of the true pixels of each class.

    Args:
        counts: (K, K) or (K, K + 1) pixels of (true, predicted); the extra column is for answers of no class.
        names: of the K classes.
        path: a .png file, written whole.
    """
    with _letters_of(names) as names:
        _confusion(counts, names, path)


def _confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    columns = [*names, "other"][: counts.shape[1]]
    truth = counts.sum(1, keepdims=True)
    shares = np.divide(100.0 * counts, truth, out=np.full(counts.shape, np.nan), where=truth > 0)
    side = min(max(4.5, 0.28 * len(names)), 16)
    figure = new_figure((side + 2.5, side + 1))
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
    save_figure(figure, path)


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
    with _letters_of([row["name"] for row in classes]) as names:
        named = [row | {"name": name} for row, name in zip(classes, names, strict=True)]
        _classes(named, score, label, mean, fonts.spelled(title), path)


def _classes(
    classes: Sequence[Mapping[str, Any]], score: str, label: str, mean: float | None, title: str, path: Path
) -> None:
    rows = sorted((row for row in classes if row[score] is not None), key=lambda row: row[score])
    figure = new_figure((7, min(max(2.5, 0.24 * len(rows) + 1.2), 60)))
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
    save_figure(figure, path)


@contextlib.contextmanager
def _letters_of(names: Sequence[str]) -> Iterator[list[str]]:
    """The names as matplotlib can draw them; within the block it takes letters of other scripts from other fonts."""
    import matplotlib
    from matplotlib import font_manager, ft2font

    # Before 3.11 it neither joins letters nor turns lines around.
    names = fonts.class_names(names, shaping=hasattr(ft2font, "__libraqm_version__"))
    words = itertools.chain.from_iterable(name.split() for name in names if not name.isascii())
    families = []
    for file in sorted(set(map(fonts.font_of, words)) - {fonts.OWN, None}):
        font_manager.fontManager.addfont(file)
        families.append(font_manager.FontProperties(fname=file).get_name())
    with matplotlib.rc_context({"font.family": [*matplotlib.rcParams["font.family"], *families]}):
        yield names


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure of matplotlib's, (width, height) in inches."""
    from matplotlib.figure import Figure  # not pyplot: no windows, no state

    return Figure(figsize=size, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Writes a .png file, whole or not at all."""
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=DPI))


def answer_and_truth(
    image: np.ndarray, found: np.ndarray, truth: np.ndarray, labels: LabelMap, ignore_index: int, title: str
) -> Image.Image:
    """Prediction, truth, and where they differ, one beside the other.

    Args:
        image: (H, W, 3) uint8.
        found, truth: (H, W) ids; without colour where they are no class of `labels`.
        ignore_index: truth that is not scored, and never an error.
    """
    errors = np.repeat(image.mean(2, keepdims=True) * 0.6 + 60, 3, axis=2)
    ignored = truth == ignore_index
    errors[ignored] *= 0.35
    errors[(found != truth) & ~ignored] = WRONG
    scores, style = np.zeros(found.shape, np.float32), (labels.names, labels.palette, ignore_index)
    maps = {"prediction": found, "truth": truth}
    panels = {name: Result(image, ids, scores, [], *style).overlay(alpha=0.6) for name, ids in maps.items()}
    panels["errors"] = Image.fromarray(errors.astype(np.uint8))
    for panel in panels.values():
        panel.thumbnail((LONGEST, LONGEST))
    row = drawing.beside([drawing.captioned(panel, name) for name, panel in panels.items()], GAP)
    return drawing.stacked([drawing.text_block([title], row.width), row], 0)
