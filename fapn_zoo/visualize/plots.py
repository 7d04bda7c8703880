"""Plots of a report, by matplotlib (extra `viz`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fapn_zoo.runtime.files import write_whole

NAMED = 60  # classes whose names still fit beside a confusion matrix
DPI = 110


def require_matplotlib() -> None:
    """ValueError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"plots need matplotlib ({error}); install it with: pip install 'fapn-zoo[viz]', or leave out --out"
        ) from None


def plot_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion matrix in percent of the true pixels of each class.

    Args:
        counts: (K, K) or (K, K + 1) pixels of (true, predicted); the extra column is for answers of no class.
        names: of the K classes.
        path: a .png file, written whole.
    """
    columns = [*names, "other"][: counts.shape[1]]
    truth = counts.sum(1, keepdims=True)
    shares = np.divide(100.0 * counts, truth, out=np.full(counts.shape, np.nan), where=truth > 0)
    side = min(max(4.5, 0.28 * len(names)), 16)
    figure = _figure((side + 2.5, side + 1))
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(drawn, ax=axes, label="% of the true pixels", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= NAMED:
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(names)), names)
    if len(names) <= 20:
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):  # NaN is not
            value = shares[row, column]
            colour = "white" if value > 60 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    _save(figure, path)


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
    rows = sorted((row for row in classes if row[score] is not None), key=lambda row: row[score])
    figure = _figure((7, min(max(2.5, 0.24 * len(rows) + 1.2), 60)))
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    axes.barh(places, [100 * row[score] for row in rows], color="tab:blue", label=label)
    near = [row.get("band_5") for row in rows]
    if any(value is not None for value in near):
        shown = [(100 * value, place) for place, value in zip(places, near, strict=True) if value is not None]
        axes.scatter(*zip(*shown, strict=True), color="black", s=14, zorder=3, label="IoU, 5 px band")
    if mean is not None:
        axes.axvline(100 * mean, color="tab:orange", label=f"mean {100 * mean:.2f}")
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set(xlim=(0, 100), ylim=(-0.6, len(rows) - 0.4), xlabel="%", title=title)
    axes.legend(loc="lower right")
    _save(figure, path)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no windows, no state

    return Figure(figsize=size, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=DPI))
