"""Weights of the official releases: downloaded once with gdown, checked, converted, and kept as a weights folder.

Nothing is redistributed: the file comes from where its authors put it, and its terms are shown when it is fetched.
Below the cache root (`fapn_zoo.runtime.files.cache_root`):

    official/<model>.<tag>/            the weights folder and `record.json`; it appears whole or not at all
    official/.<model>.<tag>.partial/   the download so far, and the folder being converted
    official/.<model>.<tag>.lock       held by the one process that fills these two
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from fapn_zoo import __version__
from fapn_zoo.runtime.files import NO_ROOM, cache_root, write_json
from fapn_zoo.weights import CARD, CONFIG, WEIGHTS
from fapn_zoo.weights.digests import file_digest, has_digest
from fapn_zoo.weights.failures import PASSING_STATUS, Failure, causes, is_unresolved, patiently, system_number
from fapn_zoo.zoo.spec import ModelSpec, WeightsSpec

logger = logging.getLogger(__name__)

RECORD = "record.json"
# Raised when converted tensors get other names or values than before: folders of an older number are made again.
CONVERTER = 1
ATTEMPTS = 4  # in a row that bring nothing new
TIMEOUT = (15, 60)  # seconds to connect, and between two blocks


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


def address(weights: WeightsSpec) -> str:
    """The URL of an official file, which a browser takes too. Raises ValueError for any other location."""
    scheme, _, drive_id = weights.location.partition(":")
    if scheme == "gdrive" and drive_id:
        return f"https://drive.google.com/uc?id={drive_id}"
    if scheme == "https":
        return weights.location
    raise ValueError(f"official weights at {weights.location!r}; expected an https URL or 'gdrive:FILE_ID'")


def download(source: Path, weights: WeightsSpec, model: str) -> None:
    """Fetches a file unless it is there and whole; twice where the first one is damaged.

    Args:
        source: where it goes. Its folder is this download's alone: the part that has arrived is kept there.
        weights: what the file is; its terms are shown when it is fetched.
        model: name of the model, for the messages.

    Raises:
        As `fetch`.
    """
    from huggingface_hub import constants

    url, before = address(weights), ""
    for last in (False, True):
        if not source.is_file():
            if constants.HF_HUB_OFFLINE:
                reason = f"{before}{model} is not in the cache and HF_HUB_OFFLINE is set"
                raise FileNotFoundError(f"{reason}: unset it to download {url}, or {_by_hand(model)}")
            if not last:
                terms = "no licence stated" if weights.license == "none-stated" else f"licence {weights.license}"
                logger.warning("%s: weights of the official release, %s, see %s", model, terms, weights.page or url)
            try:
                patiently(lambda: _attempt(url, source, model), ATTEMPTS, lambda: _arrived(source))
            except Failure as failure:
                raise failure.kind(f"{before}{failure}") from failure
        with open(source, "rb") as file:
            head = file.read(512)
        if head.lstrip().startswith(b"<"):
            source.unlink()
            reason = "answered with a web page instead of a checkpoint; a proxy or a login page may be in between"
            raise ValueError(f"{url} {reason}; {_by_hand(model)}")
        damage = _damage(source, weights, is_zip=head.startswith(b"PK\x03\x04"))
        if damage is None:
            return
        source.unlink()
        if last:
            raise ValueError(f"{url} {damage}; deleted after two downloads; {_by_hand(model)}")
        logger.warning("%s %s; downloading it again", url, damage)
        before = f"what had arrived of {url} {damage} and was deleted; "


def no_room(doing: str, number: int, need: str, folder: Path) -> OSError:
    """The error of a disk on which a download or its conversion does not fit."""
    free = f"{readable(shutil.disk_usage(folder).free)} are free in {folder}"
    advice = "make room, or choose another place with cache_dir= or FAPN_ZOO_CACHE; what has arrived is kept"
    return OSError(f"no room for {doing} ({os.strerror(number)}): {need}; {free}; {advice}")


def readable(size: int) -> str:
    """Bytes as people write them."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _damage(source: Path, weights: WeightsSpec, *, is_zip: bool) -> str | None:
    """What is wrong with a file: by the md5 in its name, else by the checksums inside a zip container."""
    if weights.md5_prefix is not None:
        digest = file_digest(source, "md5")
        whole = digest.startswith(weights.md5_prefix)
        return None if whole else f"has the md5 {digest}, while its name promises {weights.md5_prefix}..."
    if not is_zip:
        return None
    try:
        with zipfile.ZipFile(source) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError) as error:
        return f"is a damaged archive ({error})"
    return None if damaged is None else f"is a damaged archive (checksum of {damaged})"


def _attempt(url: str, source: Path, model: str) -> None:
    """Downloads the rest of a file. What another attempt may mend is a `Failure`, all else a built-in error."""
    import gdown
    import requests

    going_on, progress = _arrived(source) > 0, _Progress(source)
    try:
        gdown.download(url, str(source), quiet=True, resume=True, use_cookies=False, timeout=TIMEOUT, progress=progress)
    except requests.HTTPError as error:
        status = error.response.status_code
        words = f"HTTP {status} {error.response.reason}"
        if status >= 500 or status in PASSING_STATUS:
            raise _passing(url, source, model, words) from error
        kind = FileNotFoundError if status in (404, 410) else PermissionError
        words += ": the release was moved or withdrawn, or its server refuses this machine; see the page of the release"
        raise kind(f"{url} answers {words}, or {_by_hand(model)}") from error
    except (gdown.FileURLRetrievalError, KeyError, AssertionError) as error:  # the latter two: an unforeseen page
        words = " ".join(str(error).lower().split())
        if "too many users" in words or "quota" in words:
            reason = "Google Drive's daily quota for this file is used up (too many accesses)"
            raise PermissionError(f"{url}: {reason}; try again in a day, or {_by_hand(model)}") from error
        words = "Google Drive shows a page instead of the file: it may be gone, not shared, or have too many accesses"
        raise _passing(url, source, model, words) from error
    except gdown.DownloadError as error:
        words = str(error).splitlines()[0].rstrip(".")
        if going_on and "incomplete" not in words:
            # A server that cannot continue, or a file that has changed since: only a new start helps.
            for part in source.parent.iterdir():
                part.unlink()
            words = "the server does not continue a download, which starts again"
        raise _passing(url, source, model, words) from error
    except requests.RequestException as error:
        *_, inner = causes(error)
        words = str(inner).rpartition(": ")[2] or type(inner).__name__
        raise _passing(url, source, model, words, passing=not is_unresolved(error)) from error
    except OSError as error:
        if (number := system_number(error)) not in NO_ROOM:
            raise
        left = "it" if progress.total is None else f"{readable(progress.total - _arrived(source))} of it"
        need = f"{left} must still fit, and then the converted weights, up to as much as the whole"
        raise no_room(f"downloading {url}", number, need, source.parent) from error
    finally:
        progress.close()


def _passing(url: str, source: Path, model: str, words: str, passing: bool = True) -> Failure:
    size = _arrived(source)
    kept = f" ({readable(size)} are kept, the next call goes on from there)" if size else ""
    advice = f"try again later, or {_by_hand(model)}"
    return Failure(f"cannot download {url}: {words}{kept}", advice, passing=passing, kind=ConnectionError)


def _arrived(source: Path) -> int:
    """Bytes of a file that is not whole yet; gdown keeps them beside it."""
    return sum(path.stat().st_size for path in source.parent.iterdir())


def _by_hand(model: str) -> str:
    return f"download it in a browser, run `fapn-zoo convert FILE --model {model} --out DIR` and load 'local-dir:DIR'"


class _Progress:
    """Called by gdown after each block: draws a bar on a terminal, gives up at once where the rest cannot fit."""

    def __init__(self, source: Path) -> None:
        self.source, self.total, self.bar = source, None, None

    def __call__(self, done: int, total: int | None) -> None:
        if self.bar is None:
            self.total = total
            if total is not None and total - done > shutil.disk_usage(self.source.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count = {"total": total, "initial": done, "unit": "B", "unit_scale": True}
            self.bar = tqdm(desc=self.source.name, disable=None, **count)  # None: but on a terminal
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
