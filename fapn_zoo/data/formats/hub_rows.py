"""Rows of a Hugging Face data set: where they come from, which split they are of, and which columns mean what."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from torch import Tensor

from fapn_zoo.data.formats.hub_stream import StreamedRows, streamed
from fapn_zoo.data.images import load_image
from fapn_zoo.data.opening import ImageError, opened, orientation, upright_size
from fapn_zoo.data.reading_rules import Reading, read_rules
from fapn_zoo.data.sample import DataError
from fapn_zoo.runtime.tables import some

GRAMMAR = "hf:OWNER/NAME[@REVISION][:CONFIG] or hf:PATH, then perhaps ?image=COLUMN&mask=COLUMN&classes=FILE"
OPTIONS = ("image", "mask", "objects", "classes", "boxes", "streaming", "buffer")
IMAGES = ("image", "pixel_values", "original_image")
MASKS = ("label", "annotation", "mask", "masks", "labels", "segmentation")
SPLITS = {"train": ("train", "training"), "val": ("validation", "val", "valid", "dev"), "test": ("test", "testing")}
HELD_OUT = 10  # every tenth row, where there is nothing to validate on
TRAP = {"images", "image", "imgs", "img", "masks", "mask", "labels", "label", "annotations", "segmentations"}


@dataclass(frozen=True)
class Name:
    """What follows `hf:`."""

    place: str
    revision: str | None
    config: str | None
    options: Mapping[str, str]

    @classmethod
    def of(cls, text: str) -> Name:
        """DataError for what is none, with the grammar."""
        place, _, query = text.removeprefix("hf:").partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if strange := [key for key in options if key not in OPTIONS]:
            raise DataError(f"{text}: unknown option {strange[0]!r}; there are {', '.join(OPTIONS)}")
        if place and Path(place).expanduser().exists():
            return cls(str(Path(place).expanduser()), None, None, options)
        match = re.fullmatch(r"([\w.-]+(?:/[\w.-]+)?)(?:@([^:@]+))?(?::([^:@]+))?", place)
        if match is None or place.startswith((".", "/")):
            raise DataError(f"cannot understand {text!r}: no such folder, and no name; write {GRAMMAR}")
        return cls(match[1], match[2], match[3], options)

    @property
    def local(self) -> bool:
        return Path(self.place).exists()

    @property
    def streams(self) -> bool:
        """Whether rows are read as they are needed, and not kept."""
        said = self.options.get("streaming", "false")
        if said not in ("true", "false"):
            raise DataError(f"hf:{self.place}: streaming={said!r}; expected true or false")
        return said == "true"


@dataclass
class Rows:
    """The rows of one split.

    Attributes:
        table: a `datasets.Dataset` whose images are not decoded.
        columns: what each column is for: "image", and of "mask", "objects", "segments_info" those that are there.
        remarks: sentences on what was chosen.
        digest: of all that is in the rows, as far as it is cheap to read.
        facts: "revision" and "license", where they are known.
    """

    name: Name
    table: Any
    columns: dict[str, str]
    digest: str
    remarks: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the data set is called: with its revision and configuration; a folder by its own name."""
        place = Path(self.name.place).resolve().name if self.name.local else self.name.place
        version = f"@{self.facts['revision'][:12]}" if "revision" in self.facts else ""
        return f"hf:{place}{version}" + (f":{self.name.config}" if self.name.config else "")

    def shown(self, index: int) -> str:
        """What an error calls row `index`."""
        return f"hf:{self.name.place} row {index}"

    def bytes(self, index: int, use: str) -> bytes:
        """The stored file of an image or a mask. DataError, which names the row, where there is none."""
        found = self.table[index][self.columns[use]]
        if found is None:
            raise DataError(f"{self.shown(index)} has no {use}")
        try:
            return Path(found["path"]).read_bytes() if found.get("bytes") is None else found["bytes"]
        except OSError as error:
            raise DataError(f"{self.shown(index)}: {error}") from None

    def pixels(self, index: int, reading: Reading) -> Tensor:
        """The image of a row, see `load_image`. DataError, which names the row, where it cannot be read."""
        try:
            return load_image(self.bytes(index, "image"), **reading.options).pixels
        except ImageError as error:
            raise DataError(f"{self.shown(index)}: {error}") from None

    def size(self, index: int, reading: Reading) -> tuple[int, int]:
        """(height, width) of the image, which is not decoded."""
        try:
            with opened(io.BytesIO(self.bytes(index, "image")), self.shown(index)) as image:
                return upright_size(image.size[::-1], orientation(image) if reading.turns else 1)
        except (OSError, SyntaxError) as error:
            raise DataError(f"{self.shown(index)}: {error}") from None


def load_rows(text: str, split: str) -> Rows:
    """Opens a split. FileNotFoundError for a split that is not there; DataError for the rest; both name the source."""
    name = Name.of(text)
    found, facts = _load(name)
    table, remarks = _split(name, found, split)
    columns = _columns(name, table)
    if "image" in columns:
        table = _undecoded(table, [columns[use] for use in ("image", "mask") if use in columns])
    return Rows(name, table, columns, _digest(table), remarks, facts)


def splits(text: str) -> list[str]:
    """The splits that `load_rows` opens; errors as there."""
    found = [*_load(Name.of(text))[0]]
    usual = [split for split, words in SPLITS.items() if any(word in found for word in words)]
    known = {word for words in SPLITS.values() for word in words}
    return (["train", "val"] if usual == ["train"] else usual) + [name for name in found if name not in known]


def _load(name: Name) -> tuple[Mapping[str, Any], dict[str, str]]:
    import datasets

    datasets.disable_progress_bars()  # of work that takes a moment
    facts = {} if name.local else _facts(name)
    revision = facts.get("revision", name.revision)
    options = {"cache_dir": _local_cache(Path(name.place))} if name.local else {"revision": revision}
    place, files = name.place, None
    if name.local and Path(place).is_file():
        place, files = Path(place).suffix.removeprefix("."), name.place
    try:
        if name.streams:
            builder = datasets.load_dataset_builder(place, name.config, data_files=files, **options)
            found = streamed(builder, name.options.get("buffer"), f"hf:{name.place}")
            facts["shuffle"] = f"in blocks of up to {next(iter(found.values())).buffer} rows"
            return found, facts
        found = datasets.load_dataset(place, name.config, data_files=files, **options)
    except DataError:
        raise
    except Exception as error:  # of many libraries: the Hub's, pyarrow's, those of the data set's own format
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"hf:{name.place} cannot be opened by the library datasets: {reason}") from error
    if not name.local:
        _check_commit(name, found, facts.get("revision"))
    return found, facts


def _local_cache(place: Path) -> str:
    """Where the library keeps rows of files here: by their names, sizes and times.

    Its own key leaves them out where a readme lists the files, and gives the rows of before to who has changed them.
    """
    from datasets import config

    digest = hashlib.sha256(os.fsencode(place.resolve()))
    for path in sorted(path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()):
        facts = path.stat()
        digest.update(os.fsencode(path) + f" {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return os.path.join(config.HF_DATASETS_CACHE, f"local-{digest.hexdigest()[:16]}")


def _facts(name: Name) -> dict[str, str]:
    """Commit and licence of a data set on the Hub, or as the cache knows them where the Hub does not answer."""
    from huggingface_hub import HfApi, constants, hf_hub_download, metadata_load
    from huggingface_hub.errors import EntryNotFoundError

    folder = Path(constants.HF_HUB_CACHE, f"datasets--{name.place.replace('/', '--')}")
    reference = folder / "refs" / (name.revision or "main")
    revision = license = None
    try:
        card = Path(hf_hub_download(name.place, "README.md", repo_type="dataset", revision=name.revision))
        revision, license = card.parent.name, (metadata_load(card) or {}).get("license")
    except EntryNotFoundError:  # it has no card, or offline none that is known
        with contextlib.suppress(Exception):
            revision = HfApi().dataset_info(name.place, revision=name.revision).sha
    except Exception:  # a fault that loading will name
        return {}
    if revision is None and reference.is_file():
        revision = reference.read_text().strip()
    if revision is None and re.fullmatch("[0-9a-f]{40}", name.revision or ""):
        revision = name.revision
    license = ", ".join(map(str, license)) if isinstance(license, list) else license
    return {key: str(value) for key, value in (("revision", revision), ("license", license)) if value}


def _check_commit(name: Name, found: Mapping[str, Any], wanted: str | None) -> None:
    """DataError where rows of another commit were loaded.

    Where the Hub does not answer, `datasets` takes the newest copy in its cache, whatever revision was asked for.
    """
    held = {Path(file["filename"]).parent.name for table in found.values() for file in table.cache_files}
    what, cure = f"hf:{name.place}{f'@{name.revision}' * bool(name.revision)}", "ask again when the Hub answers"
    if wanted is None:
        raise DataError(f"{what}: the Hub does not answer, and which commit that is cannot be told; {cure}")
    if other := sorted(held - {wanted}):
        text = f"the newest copy in the cache of the library datasets is of commit {other[0]}, not of {wanted}"
        raise DataError(f"{what}: the Hub does not answer, and {text}; {cure}, or take hf:{name.place}@{other[0]}")


def _split(name: Name, found: Mapping[str, Any], split: str) -> tuple[Any, list[str]]:
    words = SPLITS.get(split, (split,))
    if known := [word for word in words if word in found]:
        table = found[known[0]]
        alone = not any(word in found for key in ("val", "test") for word in SPLITS[key])
        if split == "train" and alone and len(table) > 1:
            rows = np.setdiff1d(np.arange(len(table)), held_out(len(table)))
            return table.select(rows), [_held(name, len(table))]
        return table, []
    train = [word for word in SPLITS["train"] if word in found]
    if split == "val" and (test := [word for word in SPLITS["test"] if word in found]):
        return found[test[0]], [f"hf:{name.place} has no validation split: {test[0]!r} is taken for it"]
    if split == "val" and train and len(found[train[0]]) > 1:
        table = found[train[0]]
        return table.select(held_out(len(table))), [_held(name, len(table))]
    raise FileNotFoundError(f"no split {split!r} in hf:{name.place}; it has {', '.join(found)}")


def held_out(count: int) -> np.ndarray:
    """The rows of a training split that are kept to validate on: a tenth, drawn with seed 0, in their order."""
    return np.sort(np.random.default_rng(0).permutation(count)[: max(count // HELD_OUT, 1)])


def _held(name: Name, count: int) -> str:
    rows = held_out(count)
    mark = hashlib.sha256(rows.tobytes()).hexdigest()[:8]
    return (
        f"hf:{name.place} has one split: {len(rows)} of its {count} rows, drawn with seed 0 ({mark}), are kept as val"
    )


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _columns(name: Name, table: Any) -> dict[str, str]:
    features = table.features
    kinds = ", ".join(f"{column} ({_kind(feature)})" for column, feature in features.items())
    _check_trap(name, features)
    found = {}
    for use, usual in (("image", IMAGES), ("mask", MASKS)):
        given = name.options.get(use)
        if given is not None and given not in features:
            raise DataError(f"hf:{name.place} has no column {given!r}; it has {kinds}")
        own = [given] if given else [column for column in usual if column in features and _is_image(features[column])]
        if len(own) > 1 or (use == "image" and not own):
            what = f"several columns may be its {use}: {', '.join(own)}" if own else "no column is its image"
            raise DataError(f"hf:{name.place}: {what}; name it as ?{use}=COLUMN. Its columns are {kinds}")
        found |= {use: own[0]} if own else {}
    objects = name.options.get("objects", "objects")
    found |= {"objects": objects} if objects in features else {}
    found |= {column: column for column in ("segments_info", "semantic_class_to_id") if column in features}
    if not {"mask", "objects"} & {*found}:
        raise DataError(f"hf:{name.place} has neither a mask nor objects; its columns are {kinds}")
    return found


def _kind(feature: Any) -> str:
    if isinstance(feature, dict):
        return f"struct of {', '.join(feature)}"
    dtype = getattr(feature, "dtype", "")
    return (
        f"{type(feature).__name__} {dtype}".strip()
        if dtype and type(feature).__name__ == "Value"
        else type(feature).__name__
    )


def _check_trap(name: Name, features: Mapping[str, Any]) -> None:
    """DataError where folders of images and masks were read as two classes of pictures."""
    for column, feature in features.items():
        names = getattr(feature, "names", None)
        if names and len(names) >= 2 and {one.lower() for one in names} <= TRAP:
            line = json.dumps({"file_name": "images/a.jpg", "mask_file_name": "masks/a.png"})
            raise DataError(
                f"hf:{name.place}: its folders {', '.join(names)} were read as classes of column {column!r}, so that "
                f"masks are pictures too. Write metadata.jsonl into it with one line per pair, such as {line}"
            )


def _undecoded(table: Any, columns: list[str]) -> Any:
    """Images as their bytes: they are decoded as those of files are."""
    import datasets

    for column in columns:
        table = table.cast_column(column, datasets.Image(decode=False))
    return table


def _digest(table: Any) -> str:
    """Of names, kinds and contents, the first 256 MiB of them; of a stream of what its files say of them."""
    digest, left = hashlib.sha256(f"{len(table)} {table.features}".encode()), 1 << 28
    indices = getattr(table, "_indices", None)
    if isinstance(table, StreamedRows):
        digest.update(table.digest.encode())
        return digest.hexdigest()[:12]
    tables = [table.data] if indices is None else [table.data, indices]
    for one in tables:
        for column in one.columns:
            for chunk in column.chunks:
                for buffer in chunk.buffers():
                    if buffer is not None and left > 0:
                        digest.update(memoryview(buffer)[:left])
                        left -= buffer.size
    return digest.hexdigest()[:12]


def repository_path(rows: Rows, file: str) -> Path | None:
    """A file beside the data; None where there is none. DataError where that cannot be known."""
    path = Path(rows.name.place) / file
    if not rows.name.local:
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        which = {"repo_type": "dataset", "revision": rows.facts["revision"]}
        try:
            path = Path(hf_hub_download(rows.name.place, file, **which))
        except LocalEntryNotFoundError as error:
            if try_to_load_from_cache(rows.name.place, file, **which) is _CACHED_NO_EXIST:
                return None
            text = f"the Hub does not answer, and whether it has a {file} is not known"
            raise DataError(f"{rows.title}: {text}; name its classes with ?classes=FILE") from error
        except EntryNotFoundError:
            return None
    return path if path.is_file() else None


def repository_file(rows: Rows, file: str) -> Any:
    """The JSON of a file beside the data; None where there is none. DataError for one that is no JSON."""
    path = repository_path(rows, file)
    try:
        return None if path is None else json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def rules(rows: Rows, reading: Reading | None) -> Reading:
    """How the pictures are read; what `reading` leaves open, a `classes.json` beside the data says."""
    file = repository_path(rows, "classes.json")
    return read_rules(Path(rows.name.place) if file is None else file.parent, reading)


def names_of(ids: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Class names from id2label. DataError where ids are not 0..K-1: a shifted class is the worst that can happen."""
    try:
        table = {int(key): str(value) for key, value in ids.items()}
    except (AttributeError, ValueError):
        raise DataError(f"{where} must be an object of ids and names") from None
    if sorted(table) != [*range(len(table))]:
        raise DataError(
            f"{where} has the ids {some(sorted(table), 12)}; expected 0..{len(table) - 1}, one name for each"
        )
    return tuple(table[i] for i in range(len(table)))
