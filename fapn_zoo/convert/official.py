"""Weights of the official releases: downloaded once, checked, converted, and kept as a weights folder.

Nothing is redistributed: the file comes from where its authors put it, and its terms are shown when it is fetched.
Below the cache root (`fapn_zoo.runtime.files.cache_root`):

    official/<model>.<tag>/            the weights folder and `record.json`; it appears whole or not at all
    official/.<model>.<tag>.partial/   the download so far, and the folder being converted
    official/.<model>.<tag>.lock       held by the one process that fills these two
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fapn_zoo import __version__
from fapn_zoo.convert.download import address, download, no_room, readable
from fapn_zoo.runtime.files import NO_ROOM, cache_root, write_json
from fapn_zoo.weights import CARD, CONFIG, WEIGHTS
from fapn_zoo.weights.digests import file_digest, has_digest
from fapn_zoo.zoo.spec import ModelSpec, WeightsSpec

logger = logging.getLogger(__name__)

RECORD = "record.json"
# Raised when converted tensors get other names or values than before: folders of an older number are made again.
CONVERTER = 1


def fetch(spec: ModelSpec, weights: WeightsSpec, cache_dir: str | Path | None = None) -> Path:
    """The weights folder of an official release: from the cache, else downloaded, checked and converted.

    What is in the cache is used without any network. Of two processes that want the same weights one fetches and the
    other waits. A download that was cut or killed goes on where it stopped, at the next call too.

    Args:
        spec: the model. weights: one of its `weights`, of source `"official"`.
        cache_dir: root of the cache; None is `FAPN_ZOO_CACHE`, else fapn_zoo in the user's cache folder.

    Raises:
        ValueError: what came is not the released checkpoint: another md5, a web page, a pickle that would run code.
        FileNotFoundError: the release is gone, or the Hub client is set offline (`HF_HUB_OFFLINE=1`) and nothing is
            cached. PermissionError: its server does not hand it out, or not any more today (Google Drive's quota).
        ConnectionError: no connection, or one that keeps breaking. OSError: no room on the disk.
    """
    root = cache_root(cache_dir) / "official"
    name = f"{spec.name}.{next(tag for tag, known in spec.weights.items() if known == weights)}"
    folder = root / name
    if _fault(folder, weights) is None:
        return folder
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{name}.lock")  # the system frees it when its holder is killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is fetching %s; waiting for it", name)
        lock.acquire()
    try:
        if (fault := _fault(folder, weights)) is not None:
            if fault:
                logger.warning("%s; making it again", fault)
            try:
                _make(folder, root / f".{name}.partial", spec, weights)
            except (OSError, ValueError) as error:
                if not fault:
                    raise
                kind = type(error) if isinstance(error, OSError) else ValueError
                raise kind(f"{fault}, and cannot be made again: {error}") from error
    finally:
        lock.release()
    return folder


def _fault(folder: Path, weights: WeightsSpec) -> str | None:
    """What is wrong with a folder, in a clause that names the file: "" where there is none yet.

    None where it holds what its record says, made from this release by this converter. Its weights are hashed when
    they are new or were written to, see `has_digest`; a folder stays until another one takes its place.
    """
    if not folder.is_dir():
        return ""
    file = folder / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if (record["url"], record["converter"]) != (address(weights), CONVERTER):
            return f"{folder} was made from another release or by an older version"
        for file in (folder / name for name in (WEIGHTS, CONFIG, CARD)):
            size, expected = file.stat().st_size, record["sizes"][file.name]
            if size != expected:
                return f"{file}, in the cache, is damaged ({size} bytes instead of {expected})"
        file = folder / WEIGHTS
        if not has_digest(file, record["sha256"]):
            digests = f"sha256 {file_digest(file)} instead of {record['sha256']}"
            return f"{file}, in the cache, is damaged ({digests})"
    except FileNotFoundError:
        return f"{file} is missing in the cache"
    except OSError as error:
        return f"{file}, in the cache, cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return f"{file}, in the cache, is damaged (it is no record)"
    return None


def _make(folder: Path, work: Path, spec: ModelSpec, weights: WeightsSpec) -> None:
    source = source_file(work, weights)
    source.parent.mkdir(parents=True, exist_ok=True)
    for leftover in work.iterdir():  # of another release, or of a conversion that was killed
        if leftover != source.parent:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    download(source, weights, spec.name)
    converted = work / "converted"
    try:
        _convert(source, converted, spec, weights)
        if folder.exists():
            os.replace(folder, work / "damaged")
        os.replace(converted, folder)
    finally:
        shutil.rmtree(converted, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    logger.info("%s: converted and kept in %s", spec.name, folder)


def source_file(work: Path, weights: WeightsSpec) -> Path:
    """Where the download goes: the same URL always continues the same file, in a folder of its own."""
    digest = hashlib.sha256(address(weights).encode()).hexdigest()[:8]
    return work / digest / weights.location.rpartition("/")[2].replace(":", "-")


def _convert(source: Path, converted: Path, spec: ModelSpec, weights: WeightsSpec) -> None:
    """Writes the weights folder with its record; a source that cannot be converted is deleted."""
    from fapn_zoo.convert import convert_file

    url, size = address(weights), source.stat().st_size
    logger.info("converting %s (%s)", source.name, readable(size))
    try:
        convert_file(source, spec, converted, weights=weights)
        record = {
            "url": url,
            "converter": CONVERTER,
            "fapn_zoo": __version__,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "source_sha256": file_digest(source),
            "sha256": file_digest(converted / WEIGHTS),
            "sizes": {name: (converted / name).stat().st_size for name in (WEIGHTS, CONFIG, CARD)},
        }
        write_json(converted / RECORD, record)
    except ValueError as error:
        source.unlink()
        words = str(error).replace(str(source), "the downloaded file")
        raise ValueError(f"{url}: {words}; it was deleted") from error
    except OSError as error:
        if (number := error.errno) not in NO_ROOM:
            raise
        need = f"the converted weights take up to {readable(size)}"
        raise no_room(f"converting {source.name}", number, need, converted.parent) from error
