"""Time and memory of opening large data sets, against pycocotools' COCO() and torchvision's CocoDetection.

    python tests/benchmarks/data_opening.py [--files N] [--mib N] [--rounds N] [--kinds KIND ...] [--csv FILE]

The data are made here: folders of `--files` pictures (hard links to one small JPEG) with as many label files, three
polygons each (boxes in VOC), and a COCO json of `--mib` MiB whose objects are polygons of 8 to 60 points, with its
pictures beside it. "open" is `open_dataset`; "check-data" is what `check_data` does before it decodes a picture. Each
measurement is a process of its own, the ways in turn, medians over the rounds; imports are not counted. The file cache
is warm after the first round.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from table import print_row, write_csv

SIZE = (64, 48)  # width, height
NAMES = ("a", "b", "c")
LINKS = 1000  # to one file: file systems have a limit
WAYS = {"coco": ("open", "check-data", "pycocotools", "torchvision"), "": ("open", "check-data")}


def many(folder: Path, ending: str, count: int, data: bytes) -> None:
    """Files of the same content: 000000.jpg, 000001.jpg, ..."""
    folder.mkdir(parents=True)
    for i in range(count):
        if i % LINKS == 0:
            (first := folder / f"{i:06d}{ending}").write_bytes(data)
        else:
            os.link(first, folder / f"{i:06d}{ending}")


def picture(ending: str) -> bytes:
    import numpy as np
    from PIL import Image

    file, rng = io.BytesIO(), np.random.default_rng(0)
    shape, top = ((*SIZE[::-1], 3), 256) if ending == "JPEG" else (SIZE[::-1], len(NAMES))
    Image.fromarray(rng.integers(0, top, shape, dtype=np.uint8)).save(file, ending)
    return file.getvalue()


def circle(points: int = 24) -> list[list[float]]:
    import numpy as np

    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([32 + 12 * np.cos(angles), 24 + 12 * np.sin(angles)], axis=1).round(4).tolist()


def write_folder(root: Path, count: int) -> None:
    many(root / "train/images", ".jpg", count, picture("JPEG"))
    many(root / "train/labels", ".png", count, picture("PNG"))
    (root / "classes.json").write_text(json.dumps({"names": NAMES}))


def write_yolo(root: Path, count: int) -> None:
    many(root / "images/train", ".jpg", count, picture("JPEG"))
    points = " ".join(f"{x / SIZE[0]:.6f} {y / SIZE[1]:.6f}" for x, y in circle())
    many(root / "labels/train", ".txt", count, "".join(f"{k} {points}\n" for k in range(len(NAMES))).encode())
    (root / "data.yaml").write_text("train: images/train\nnames: [a, b, c]\n")


def write_voc(root: Path, count: int) -> None:
    many(root / "JPEGImages", ".jpg", count, picture("JPEG"))
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in NAMES)
    size = "<size><width>64</width><height>48</height></size>"
    many(root / "Annotations", ".xml", count, f"<annotation>{size}{objects}</annotation>".encode())


def write_labelme(root: Path, count: int) -> None:
    many(root / "train", ".jpg", count, picture("JPEG"))
    shapes = [{"label": n, "points": circle(), "shape_type": "polygon", "group_id": None} for n in NAMES]
    for i in range(count):
        table = {"version": "5.5.0", "imagePath": f"{i:06d}.jpg", "imageHeight": 48, "imageWidth": 64, "shapes": shapes}
        (root / f"train/{i:06d}.json").write_text(json.dumps(table))


def write_coco(root: Path, mib: int) -> None:
    """`instances_train.json`, its lists in the order of COCO's own files."""
    import numpy as np

    rng, number, images, annotations = np.random.default_rng(0), 0, [], root / "annotations.part"
    with annotations.open("w") as file:
        while file.tell() < mib * 2**20 - 100 * len(images):
            images.append({"id": len(images) + 1, "file_name": f"{len(images):06d}.jpg", "height": 480, "width": 640})
            for _ in range(7):
                number += 1
                x, y, r = *rng.uniform(60, 420, 2), rng.uniform(5, 55)
                angles = np.linspace(0, 2 * np.pi, rng.integers(8, 60), endpoint=False)
                points = np.stack([x + r * np.cos(angles), y + r * np.sin(angles)], axis=1).round(2)
                (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
                entry = {"segmentation": [points.ravel().tolist()], "area": round(3.14 * r * r, 4), "iscrowd": 0}
                entry |= {"image_id": len(images), "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]}
                entry |= {"category_id": int(rng.integers(1, 81)), "id": number}
                file.write((", " if number > 1 else "") + json.dumps(entry))
    many(root / "train", ".jpg", len(images), picture("JPEG"))
    categories = [{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in range(1, 81)]
    with (root / "instances_train.json").open("w") as file, annotations.open() as part:
        file.write(f'{{"info": {{}}, "images": {json.dumps(images)}, "annotations": [')
        while block := part.read(1 << 20):
            file.write(block)
        file.write(f'], "categories": {json.dumps(categories)}}}')
    annotations.unlink()


WRITERS = {
    "folder": write_folder, "yolo": write_yolo, "voc": write_voc, "labelme": write_labelme, "coco": write_coco
}  # fmt: skip


def caller(way: str, kind: str, root: Path) -> Callable[[], object]:
    """What is measured, its imports done."""
    if way in ("pycocotools", "torchvision"):
        from pycocotools.coco import COCO
        from torchvision.datasets import CocoDetection

        file = str(root / "instances_train.json")
        return (lambda: COCO(file)) if way == "pycocotools" else (lambda: CocoDetection(str(root / "train"), file))
    import hotcoco  # noqa: F401
    import scipy  # noqa: F401

    from fapn_zoo.data import check, check_samples, open_dataset

    if way == "open":
        return lambda: open_dataset(root, "train", ("labels",) if kind == "folder" else ("boxes",))
    check_samples._Split.check = lambda self, progress: None
    return lambda: check.check_data(root, progress=False)


def measure(way: str, kind: str, root: Path) -> dict[str, float]:
    """Seconds and peak MiB above what the imports took, in this process."""
    import resource
    import time

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    call = caller(way, kind, root)
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        kept = call()
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return found | {"peak_mib": peak() - before, "kept": kept is not None}


def child(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout)


def size_of(root: Path, kind: str) -> str:
    if kind == "coco":
        return f"{(root / 'instances_train.json').stat().st_size / 2**20:.0f} MiB"
    return f"{sum(len(files) for _, _, files in os.walk(root)):,} files"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="pictures of a folder")
    parser.add_argument("--mib", type=int, default=1024, help="of the json file")
    parser.add_argument("--kinds", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--csv", help="also write the rows to this file")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, kind, root = options.child
        if way == "write":
            WRITERS[kind](Path(root), options.mib if kind == "coco" else options.files)
        print(json.dumps({} if way == "write" else measure(way, kind, Path(root))))
        return
    rows = []
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as folder:
            # Not here, since the peak of a process is handed on to its children.
            child("write", kind, folder, "--mib", str(options.mib), "--files", str(options.files))
            ways = WAYS.get(kind, WAYS[""])
            runs = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way in ways:
                    runs[way].append(child(way, kind, folder))
            size = size_of(Path(folder), kind)
        found = {way: {key: statistics.median(run[key] for run in runs[way]) for key in runs[way][0]} for way in ways}
        for way in ways:
            row = {"kind": kind, "size": size, "way": way} | {
                key: f"{found[way][key]:.1f}" for key in list(found[way])[:3]
            }
            row |= {
                f"times_{key}": f"{found[way][key] / max(found['open'][key], 1e-3):.2f}"
                for key in ("cpu_seconds", "peak_mib")
            }
            rows.append(row | {"rounds": options.rounds})
            print_row(rows[-1])
    if options.csv:
        from table import run_facts

        from fapn_zoo.runtime.device import processor

        write_csv(options.csv, rows, {"processor": processor(), **run_facts()})


if __name__ == "__main__":
    main()
