"""The pictures and objects of `toys.coco` in the formats of other tools, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toys import coco

NAMES = ("kind 1", "kind 2", "kind 3")
HEIGHT, WIDTH = coco.SIZE
SPLITS = ("train", "val")


def tables(masks: bool = True) -> dict[str, dict[str, Any]]:
    """COCO's json of train and val, three pictures each, none of them alike."""
    found = {}
    for before, split in ((0, "train"), (3, "val")):  # a picture's colour is its id's
        found[split] = coco.table(masks=masks, seed=before)
        for entry in (*found[split]["images"], *found[split]["annotations"]):
            entry["id" if "file_name" in entry else "image_id"] += before
    return found


def objects_of(table: dict[str, Any], image: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in table["annotations"] if one["image_id"] == image["id"]]


def write_coco(root: Path, masks: bool = True) -> Path:
    for split, table in tables(masks).items():
        for one in table["annotations"]:
            del one["area"]
        coco.write(root, table, f"annotations_{split}.json", f"{split}/images")
    return root


def write_yolo(root: Path, masks: bool = True, names: Any = NAMES) -> Path:
    """data.yaml with images/{split} and labels/{split}."""
    for split, table in tables(masks).items():
        coco.write(root, table, "unused.json", f"images/{split}")
        (root / "unused.json").unlink()
        (root / "labels" / split).mkdir(parents=True)
        for image in table["images"]:
            rows = []
            for one in objects_of(table, image):
                x, y, w, h = one["bbox"]
                values = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
                if masks:
                    values = [v / (HEIGHT if i % 2 else WIDTH) for i, v in enumerate(one["segmentation"][0])]
                rows.append(" ".join(map(str, [one["category_id"] - 1, *values])))
            (root / "labels" / split / Path(image["file_name"]).with_suffix(".txt")).write_text("\n".join(rows))
    text = json.dumps(list(names) if isinstance(names, tuple) else names)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnc: 3\nnames: {text}\n")
    return root


def write_voc(root: Path, masks: bool = True, first: int = 1, said: dict[str, Any] | None = None) -> Path:
    """Annotations, JPEGImages and ImageSets/Main, the pixels counted from `first`."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, table in tables(masks).items():
        coco.write(root, table, "unused.json", "JPEGImages")
        (root / "unused.json").unlink()
        stems = [f"{split}_{Path(image['file_name']).stem}" for image in table["images"]]
        for image, stem in zip(table["images"], stems, strict=True):
            (root / "JPEGImages" / image["file_name"]).rename(root / "JPEGImages" / f"{stem}.png")
            found = "".join(voc_object(one, masks, first) for one in objects_of(table, image))
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
            (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{size}{found}</annotation>")
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(stems))
    (root / "classes.json").write_text(json.dumps({"names": NAMES, "first_pixel": first} if said is None else said))
    return root


def voc_object(one: dict[str, Any], masks: bool, first: int, more: str = "") -> str:
    x, y, w, h = one["bbox"]
    sides = {"xmin": x + first, "ymin": y + first, "xmax": x + w, "ymax": y + h}
    box = "".join(f"<{key}>{value}</{key}>" for key, value in sides.items())
    points = one["segmentation"][0] if masks else []
    tags = "".join(
        f"<{'yx'[i % 2 == 0]}{i // 2 + 1}>{v + first}</{'yx'[i % 2 == 0]}{i // 2 + 1}>" for i, v in enumerate(points)
    )
    polygon = f"<polygon>{tags}</polygon>" if masks else ""
    name = f"<name>{NAMES[one['category_id'] - 1]}</name><part><name>head</name></part>"
    return f"<object>{name}{more}<bndbox>{box}</bndbox>{polygon}</object>"


def write_labelme(root: Path, masks: bool = True) -> Path:
    """{split}/NAME.json beside its picture."""
    for split, table in tables(masks).items():
        coco.write(root, table, "unused.json", split)
        (root / "unused.json").unlink()
        for image in table["images"]:
            shapes = []
            for one in objects_of(table, image):
                x, y, w, h = one["bbox"]
                points, kind = [[x + w, y + h], [x, y]], "rectangle"
                if masks:
                    flat = one["segmentation"][0]
                    points, kind = [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)], "polygon"
                shape = {"label": NAMES[one["category_id"] - 1], "points": points, "shape_type": kind}
                shapes.append(shape | {"group_id": None, "flags": {}})
            size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
            table_of = {"version": "5.5.0", "shapes": shapes, "imagePath": image["file_name"], "imageData": None} | size
            (root / split / Path(image["file_name"]).with_suffix(".json")).write_text(json.dumps(table_of))
    return root


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc, "labelme": write_labelme}
