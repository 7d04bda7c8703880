"""Which picture belongs to which mask, by templates for the place of the mask, and which of them fits a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from fapn_zoo.data.images import EXTENSIONS
from fapn_zoo.data.reading import LABEL_ENDINGS
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.tables import some

FORM = "{parent}, {parent.parent}, {stem}, {name} or {suffix}, perhaps with a part exchanged, as {parent|images>masks}"
MASK_FOLDER = re.compile(r"(masks?|labels?|labelids|annot\w*|seg\w*|gt|gts|ground_?truth|targets?)", re.IGNORECASE)
AFTER = re.compile(r"[-_. ]?" + MASK_FOLDER.pattern + r"[-_. ]?(id|ids|png)?", re.IGNORECASE)
TRIED = 50  # pictures by which a template is judged first
ANY = ".*"  # an ending of a template: that of any label file

Files = dict[str, dict[str, list[str]]]  # folder -> stem -> endings; all paths are relative, with /


class Template:
    """The place of a mask, such as `{parent.parent}/masks/{stem}_mask.png`, relative to the data folder.

    `{parent|images>masks}` is the folder of the picture with its last part `images` exchanged; `{stem|img>mask}` its
    name with that piece exchanged. ValueError for another form.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        for field in re.findall(r"\{([^{}]*)\}", text):
            if not re.fullmatch(r"(parent(\.parent)*|stem|name|suffix)(\|[^|>{}]+>[^|>{}]*)?", field):
                raise ValueError(f"masks={text!r}: {{{field}}} is none of {FORM}")
        if "{stem" not in text and "{name" not in text:
            raise ValueError(f"masks={text!r} names one mask for all pictures; it needs {{stem}} or {{name}}")

    def __call__(self, picture: str) -> str | None:
        """The mask of a picture, both relative; None where there is nothing to exchange."""
        path, missed = PurePosixPath(picture), False

        def fill(match: re.Match) -> str:
            nonlocal missed
            field, _, change = match[1].partition("|")
            value, old, new = getattr(path, field.split(".")[0]), *change.partition(">")[::2]
            for _ in range(field.count(".")):
                value = value.parent
            parts = list(value.parts) if isinstance(value, PurePosixPath) else [value]
            if change and isinstance(value, PurePosixPath):
                missed |= old not in parts
                last = len(parts) - 1 - parts[::-1].index(old) if old in parts else 0
                parts[last : last + 1] = [new]
            elif change:
                missed |= old not in value
                parts = [value.replace(old, new)]
            return "/".join(parts) or "."

        found = re.sub(r"\{([^{}]*)\}", fill, self.text)
        return None if missed else os.path.normpath(found).replace(os.sep, "/")


def listed(paths: Iterable[str]) -> Files:
    """Relative paths by folder and stem."""
    found: Files = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        stem, ending = os.path.splitext(name)
        found.setdefault(folder, {}).setdefault(stem, []).append(ending)
    return found


def mask_of(template: Template, picture: str, files: Files, root: Path) -> str | None:
    """The mask of a picture that is there; None where there is none. DataError where there are several."""
    path = template(picture)
    if path is None or path == picture:
        return None
    if not path.endswith(ANY):
        folder, _, name = path.rpartition("/")
        stem, ending = os.path.splitext(name)
        return path if ending in files.get(folder, {}).get(stem, ()) or (root / path).is_file() else None
    folder, _, stem = path.removesuffix(ANY).rpartition("/")
    endings = [one for one in files.get(folder, {}).get(stem, ()) if one.lower() in (*LABEL_ENDINGS, *EXTENSIONS)]
    paths = [f"{folder}/{stem}{one}".lstrip("/") for one in endings]
    paths = [path for path in paths if path != picture]
    if len(paths) > 1:
        raise DataError(f"{root / picture} has several masks: {some(paths)}")
    return paths[0] if paths else None


def pair_up(template: Template, pictures: Sequence[str], files: Files, root: Path) -> dict[str, str]:
    """Picture -> mask, where there is one; what is the mask of another picture is none itself."""
    found = {picture: mask for picture in pictures if (mask := mask_of(template, picture, files, root))}
    masks = {*found.values()}
    return {picture: mask for picture, mask in found.items() if picture not in masks}


def usual_templates(pictures: Sequence[str], files: Files) -> list[Template]:
    """Templates that may fit: folders beside each other whose names tell, and endings of names that tell."""
    found: dict[str, None] = {}
    for old, new in dict.fromkeys(_swaps(files)):
        place = f"{{parent|{old}>{new}}}"
        inside = [picture for picture in pictures if old in picture.split("/")[:-1]]
        if new.startswith(old):  # as "train" and "train_masks": the same for other splits
            place = f"{{parent}}{new[len(old) :]}"
            inside = [picture for picture in inside if f"{picture.rpartition('/')[0]}{new[len(old) :]}" in files]
        for after in _endings(place, inside, files):
            found[f"{place}/{{stem}}{after}{ANY}"] = None
    for after in _endings("{parent}", pictures, files):
        found[f"{{parent}}/{{stem}}{after}{ANY}"] = None
    return [Template(text) for text in found]


def _swaps(files: Files) -> Iterator[tuple[str, str]]:
    """Pairs of folder names beside each other, the second of which is one of masks."""
    beside: dict[str, set[str]] = {}
    for folder in files:
        parts = folder.split("/")
        for depth in range(len(parts)):
            beside.setdefault("/".join(parts[:depth]), set()).add(parts[depth])
    for names in beside.values():
        for new in sorted(names):
            for old in sorted(names - {new}):
                own = MASK_FOLDER.fullmatch(new) or new == "SegmentationClass"
                if not _is_masks(old) and (own or (new.startswith(old) and AFTER.fullmatch(new[len(old) :]))):
                    yield old, new


def _bare(picture: str) -> str:
    return os.path.splitext(picture)[0]


def _is_masks(name: str) -> bool:
    return bool(MASK_FOLDER.fullmatch(name) or re.search(AFTER.pattern + "$", name, re.IGNORECASE))


def _endings(place: str, pictures: Sequence[str], files: Files) -> list[str]:
    """What may follow the stem of a picture in the name of its mask: what follows those of the first few."""
    template, common = Template(place + "/{stem}"), None
    step = max(len(pictures) // TRIED, 1)
    for picture in pictures[::step]:
        if (path := template(picture)) is None:
            continue
        folder, _, stem = path.rpartition("/")
        own = {other[len(stem) :] for other in files.get(folder, {}) if other.startswith(stem)}
        own = {after for after in own if AFTER.fullmatch(after) or (not after and path != _bare(picture))}
        if own:
            common = own if common is None else common & own
    return sorted(common or ())
