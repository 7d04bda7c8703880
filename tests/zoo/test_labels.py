"""The label sets in the package: well-formed, and right in the places where an off-by-one would show."""

from __future__ import annotations

import pytest

from fapn_zoo.zoo.labels import label_set, list_label_sets, with_labels
from fapn_zoo.zoo.registry import get_spec

pytestmark = pytest.mark.unit

SIZES = {  # name: (classes, things, ignore_index)
    "ade20k": (150, 100, 255),
    "ade20k_full": (847, 0, 65535),
    "camvid": (11, 3, 255),
    "cityscapes": (19, 8, 255),
    "coco": (80, 80, 255),
    "coco_panoptic": (133, 80, 255),
    "cocostuff10k": (171, 80, 255),
    "mapillary_vistas": (65, 37, 65),
}

# First, last and classes in the middle: a lost or doubled row shifts at least one of them.
LANDMARKS = {
    "ade20k": {0: "wall", 3: "floor", 12: "person", 80: "bus", 130: "screen", 149: "flag"},
    "ade20k_full": {0: "wall", 11: "person", 255: "pier", 846: "adding machine"},
    "camvid": {0: "Sky", 3: "Road", 10: "Bicyclist"},
    "cityscapes": {0: "road", 10: "sky", 13: "car", 18: "bicycle"},
    "coco": {0: "person", 11: "stop sign", 39: "bottle", 79: "toothbrush"},
    "coco_panoptic": {0: "person", 79: "toothbrush", 80: "banner", 132: "rug-merged"},
    "cocostuff10k": {0: "person", 11: "stop sign", 79: "toothbrush", 80: "banner", 170: "wood"},
    "mapillary_vistas": {0: "Bird", 19: "Person", 55: "Car", 64: "Ego Vehicle"},
}

COLOURS = {
    ("ade20k", "wall"): (120, 120, 120),
    ("ade20k", "building"): (180, 120, 120),
    ("ade20k", "flag"): (92, 0, 255),
    ("camvid", "Pavement"): (60, 40, 222),
    ("cityscapes", "road"): (128, 64, 128),
    ("cityscapes", "bicycle"): (119, 11, 32),
    ("coco", "person"): (220, 20, 60),
    ("cocostuff10k", "person"): (220, 20, 60),
    ("mapillary_vistas", "Ego Vehicle"): (120, 10, 10),
}


def test_the_list_is_complete():
    assert list_label_sets() == tuple(sorted(SIZES))


@pytest.mark.parametrize("name", sorted(SIZES))
def test_set_is_well_formed(name):
    labels = label_set(name)
    classes, things, ignore = SIZES[name]
    assert len(labels["names"]) == len(labels["palette"]) == classes
    assert len(set(labels["names"])) == classes
    assert all(n and n == n.strip() for n in labels["names"])
    assert all(len(c) == 3 and all(type(v) is int and 0 <= v <= 255 for v in c) for c in labels["palette"])
    assert len(labels["things"]) == things
    assert list(labels["things"]) == sorted(set(labels["things"]))
    assert all(0 <= t < classes for t in labels["things"])
    assert labels["ignore_index"] == ignore
    assert ignore >= classes, "the ignore value must not be a class id"
    assert labels["source"] and all(labels["source"]) and labels["licence_note"]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_landmarks(name):
    names = label_set(name)["names"]
    assert {i: names[i] for i in LANDMARKS[name]} == LANDMARKS[name]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_colours_tell_classes_apart(name):
    # The official ADE20K palette gives road and skyscraper one colour; nothing else may repeat.
    palette = label_set(name)["palette"]
    assert len(palette) - len(set(palette)) == (1 if name == "ade20k" else 0)


@pytest.mark.parametrize(("name", "label"), sorted(COLOURS))
def test_known_colours(name, label):
    labels = label_set(name)
    assert labels["palette"][labels["names"].index(label)] == COLOURS[name, label]


def test_things_by_name():
    def things(name):
        labels = label_set(name)
        return [labels["names"][i] for i in labels["things"]]

    assert things("cityscapes") == ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert label_set("cocostuff10k")["things"] == tuple(range(80))
    assert things("ade20k")[:4] == ["bed", "windowpane", "cabinet", "person"]
    assert not {"wall", "sky", "floor", "tree", "road", "tower", "swimming pool"} & set(things("ade20k"))


def test_shared_first_synonyms_are_told_apart():
    names = label_set("ade20k_full")["names"]
    assert {"screen (crt screen)", "screen (silver screen)", "patio", "patio (terrace)"} <= set(names)


def test_unknown_name_lists_the_known_ones():
    for name in ("ade", "../label_sets/ade20k", ""):
        with pytest.raises(ValueError, match="cityscapes") as error:
            label_set(name)
        assert repr(name) in str(error.value)


def test_a_caller_cannot_change_the_set():
    label_set("camvid")["names"] = ()
    assert len(label_set("camvid")["names"]) == 11


def test_category_ids_of_coco_have_its_gaps():
    ids = label_set("coco_panoptic")["category_ids"]
    assert len(ids) == 133 and list(ids) == sorted(set(ids)) and ids[-1] == 200 and not set(ids) & {12, 26, 66, 91}
    assert label_set("coco")["category_ids"] == ids[:80] and ids[79] == 90
    assert with_labels(get_spec("mask_rcnn_fpn_resnet50_coco")[0]).data.category_ids == ids[:80]
