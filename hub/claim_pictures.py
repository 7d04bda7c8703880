"""Pictures of the claim from the runs of a plan: bands, offsets, and the same thin objects seen by FPN and FaPN.

    python hub/train_all.py recipes/claim/scenes.json --out runs/scenes data=scenes:100@180x240 backbone_weights=FILE
    python hub/claim_pictures.py runs/scenes

Writes docs/pictures/claim-{bands,offsets,thin}.png. Bands are those of hub/results/claim.csv (CamVid); offsets and thin
objects are of the small runs on generated scenes in the folder, on scenes that none of them was trained on. The scenes
shown are those with the most pixels of thin classes, whatever the models find in them.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from fapn_zoo import create_model
from fapn_zoo.data.generated import ScenesDataset
from fapn_zoo.visualize import read_alignment
from fapn_zoo.visualize.plots import Panel, write_panels, written_figure

ROOT = Path(__file__).resolve().parents[1]
PICTURES, CLAIM = ROOT / "docs" / "pictures", ROOT / "hub" / "results" / "claim.csv"
PIXELS = (3, 5, 8, 12)
NAMES = {"fpn": "FPN", "fapn": "FaPN, slow offsets", "fapn_fast_offsets": "FaPN, fast offsets"}
THIN = ("Pole", "SignSymbol", "Pedestrian", "Bicyclist")
OFFSET_SCENES, SHOWN, CROP = 20, 3, (90, 120)  # scenes whose offsets are counted; scenes drawn; (h, w) of what is drawn


def plot_bands(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """mIoU of the bands of a dialect's necks, less the FPN's mean: mean of the seeds, bars of one standard deviation.

    Args:
        rows: of hub/results/claim.csv.
    """
    kinds = {"fapn": "FaPN", "fam": "FaPN without selection", "fpn_extra3x3": "FPN, as many parameters"}
    kinds |= {"fapn_fixed_offsets": "FaPN, offsets at zero", "fapn_fast_offsets": "FaPN, fast offsets"}
    with written_figure((10, 4), [], path) as figure:
        dialects = {"detectron2": "detectron2", "maskformer": "MaskFormer"}
        for place, (dialect, title) in zip(figure.subplots(1, 2, sharey=True), dialects.items(), strict=True):
            found = [row for row in rows if row["dialect"] == dialect and row["steps"] == "900"]
            base = [statistics.fmean(values) for values in bands(found, "fpn")]
            for name in [kind for kind in kinds if any(row["row"] == kind for row in found)]:
                columns = bands(found, name)
                means = [statistics.fmean(values) - zero for values, zero in zip(columns, base, strict=True)]
                place.errorbar(
                    PIXELS, means, [statistics.stdev(values) for values in columns], capsize=3, label=kinds[name]
                )
            place.axhline(0, color="black", linewidth=1, label="FPN")
            place.set(title=f"{title}'s dialect", xlabel="pixels from a boundary", xticks=PIXELS, ylim=(-3.2, 1.6))
            place.legend(fontsize=8, loc="lower left")
        figure.axes[0].set_ylabel("mIoU less FPN's, points")


def bands(rows: Sequence[Mapping[str, str]], name: str) -> list[list[float]]:
    """For every width of band, the scores of a row's seeds."""
    return [[float(row[f"band_{pixels}"]) for row in rows if row["row"] == name] for pixels in PIXELS]


def offset_lengths(model: nn.Module, images: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Stride of a level -> lengths of all its offsets, in pixels of the network's input."""
    found: dict[int, list[np.ndarray]] = {}
    for image in images:
        for level in read_alignment(model, image).levels:
            lengths = np.hypot(level.offsets[:, :, 0], level.offsets[:, :, 1]) * level.stride
            found.setdefault(level.stride, []).append(lengths.ravel())
    return {stride: np.concatenate(parts) for stride, parts in found.items()}


def plot_offsets(lengths: Mapping[str, Mapping[int, np.ndarray]], path: Path) -> None:
    """Histograms of the lengths of the offsets, a panel per level, a line per model."""
    strides = sorted(next(iter(lengths.values())))
    edges = np.geomspace(0.1, 1000, 61)
    with written_figure((3.6 * len(strides), 3.4), [], path) as figure:
        for place, stride in zip(figure.subplots(1, len(strides), sharey=True, squeeze=False)[0], strides, strict=True):
            for name, by_stride in lengths.items():
                values = np.clip(by_stride[stride], edges[0], edges[-1])
                label = f"{name}: median {np.median(by_stride[stride]):.1f} px"
                place.hist(values, edges, weights=np.full(values.size, 100 / values.size), histtype="step", label=label)
            place.axvline(stride, color="grey", linewidth=1, linestyle="dotted")
            place.set(xscale="log", title=f"stride {stride}", xlabel="length of an offset, px of the input")
            place.legend(fontsize=7)
        figure.axes[0].set_ylabel("% of the samples")


def thin_scenes(dataset: ScenesDataset) -> list[tuple[int, tuple[slice, slice]]]:
    """The scenes with the most pixels of thin classes, and in each the window in which most of them lie."""
    wanted = [dataset.labels.names.index(name) for name in THIN]
    windows = []
    for index in range(len(dataset)):
        sums = np.pad(np.isin(dataset.sample(index).labels, wanted).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        height, width = CROP
        counts = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        y, x = np.unravel_index(counts.argmax(), counts.shape)
        windows.append((int(counts[y, x]), index, (slice(int(y), int(y) + height), slice(int(x), int(x) + width))))
    return [(index, window) for _, index, window in sorted(windows, key=lambda row: (-row[0], row[1]))[:SHOWN]]


def draw_thin(models: Mapping[str, nn.Module], dataset: ScenesDataset, path: Path) -> None:
    """Writes image, truth and what every model finds, in the windows of `thin_scenes`, a scene per row."""
    palette = np.array([*dataset.labels.palette, *[(0, 0, 0)] * (256 - len(dataset.labels.palette))], np.uint8)
    wanted = [dataset.labels.names.index(name) for name in THIN]
    rows: list[list[Panel]] = []
    for index, window in thin_scenes(dataset):
        sample = dataset.sample(index)
        truth = sample.labels[window]
        row = [(sample.image.permute(1, 2, 0).numpy()[window], f"scene {index}", ""), (palette[truth], "truth", "")]
        for name, model in models.items():
            found = model.predict(sample.image, amp="no").labels[window]
            right = (found == truth)[np.isin(truth, wanted)].mean()
            row.append((palette[found], name, f"{right:.0%} of thin pixels right"))
        rows.append([(np.asarray(Image.fromarray(cell).resize((360, 270), 0)), *words) for cell, *words in row])
    write_panels(rows, "", path, {name: dataset.labels.palette[wanted[i]] for i, name in enumerate(THIN)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="OUT of hub/train_all.py")
    runs = parser.parse_args().runs
    with open(CLAIM, newline="", encoding="utf-8") as file:
        plot_bands(list(csv.DictReader(file)), PICTURES / "claim-bands.png")
    data = json.loads((runs / "fpn" / "0" / "settings.json").read_text(encoding="utf-8"))["data"]
    dataset = ScenesDataset(data, "test")
    models = {
        name: create_model(f"local-dir:{runs / row / '0' / 'model'}", pretrained=True) for row, name in NAMES.items()
    }
    images = [dataset.sample(index).image for index in range(min(OFFSET_SCENES, len(dataset)))]
    lengths = {name: offset_lengths(model, images) for name, model in models.items() if name != NAMES["fpn"]}
    for name, by_stride in lengths.items():
        for stride, values in sorted(by_stride.items()):
            low, middle, high = np.percentile(values, (10, 50, 90)).round(2)
            spread = f"10 % {low}, 50 % {middle}, 90 % {high} px"
            print(f"{name}, stride {stride}: mean {values.mean():.2f}, {spread}")
    plot_offsets(lengths, PICTURES / "claim-offsets.png")
    draw_thin(models, dataset, PICTURES / "claim-thin.png")
    for name in ("bands", "offsets", "thin"):  # a third of the bytes
        path = PICTURES / f"claim-{name}.png"
        Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path)


if __name__ == "__main__":
    main()
