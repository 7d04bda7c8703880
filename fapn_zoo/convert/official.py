"""Weights of the official releases: downloaded once, checked, converted, and kept as a weights folder.

Nothing is redistributed: the file comes from where its authors put it, and its terms are shown when it is fetched.
Below the cache root (`fapn_zoo.runtime.files.cache_root`):

    official/<model>.<tag>/            the weights folder and ``record.json``; it appears whole or not at all
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
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fapn_zoo import __version__
from fapn_zoo.runtime.files import cache_root
from fapn_zoo.weights.folder import CARD, CONFIG, WEIGHTS
from fapn_zoo.weights.hub import file_sha256
from fapn_zoo.zoo.spec import ModelSpec, WeightsSpec

logger = logging.getLogger(__name__)

RECORD = "record.json"
# Raised when converted tensors get other names or values than before: folders of an older number are made again.
CONVERTER = 1

TRIES = 4  # in a row that bring nothing new
PAUSE = 1.0  # seconds before the first repetition; doubled for each further one
TIMEOUT = (15, 60)  # seconds to connect, and between two blocks
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fetch(spec: ModelSpec, weights: WeightsSpec, cache_dir: str | Path | None = None) -> Path:
    """The weights folder of an official release: from the cache, else downloaded, checked and converted.

    What is in the cache is used without any network. Of two processes that want the same weights one fetches and the
    other waits. A download that was cut or killed goes on where it stopped, at the next call too.

    Args:
        spec: the model. weights: one of its ``weights``, of source ``"official"``.
        cache_dir: root of the cache; None is ``FAPN_ZOO_CACHE``, else fapn_zoo in the user's cache folder.

    Raises:
        ValueError: what came is not the released checkpoint: another md5, a web page, a pickle that would run code.
        FileNotFoundError: the release is gone, or the Hub client is set offline (``HF_HUB_OFFLINE=1``) and nothing is
            cached. PermissionError: its server does not hand it out, or not any more today (Google Drive's quota).
        ConnectionError: no connection, or one that keeps breaking. OSError: no room on the disk.
    """
    root = cache_root(cache_dir) / "official"
    name = f"{spec.name}.{_tag(spec, weights)}"
    folder = root / name
    if _is_whole(folder, weights):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f".{name}.lock", name):
        if not _is_whole(folder, weights):
            _make(folder, root / f".{name}.partial", spec, weights)
    return folder


def address(weights: WeightsSpec) -> str:
    """The URL of an official file, which a browser takes too. Raises ValueError for any other location."""
    scheme, _, drive_id = weights.location.partition(":")
    if scheme == "gdrive" and drive_id:
        return f"https://drive.google.com/uc?id={drive_id}"
    if scheme == "https":
        return weights.location
    raise ValueError(f"official weights at {weights.location!r}; expected an https URL or 'gdrive:FILE_ID'")


def _tag(spec: ModelSpec, weights: WeightsSpec) -> str:
    for tag, known in spec.weights.items():
        if known == weights:
            return tag
    raise ValueError(f"weights at {weights.location!r} are none of model {spec.name!r}")


def _is_whole(folder: Path, weights: WeightsSpec) -> bool:
    """Whether the folder holds what its record says, made from this release by this converter."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return (record["url"], record["converter"]) == (address(weights), CONVERTER) and all(
            (folder / name).stat().st_size == record["sizes"][name] for name in (WEIGHTS, CONFIG, CARD)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    """Holds a lock between processes; the system frees it when its holder is killed."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is fetching %s; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(folder: Path, work: Path, spec: ModelSpec, weights: WeightsSpec) -> None:
    url = address(weights)
    work.mkdir(exist_ok=True)
    source = _source_file(work, weights)
    for leftover in work.iterdir():  # of another release, or of a conversion that was killed
        if not leftover.name.startswith(source.name):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    if not source.is_file():
        _refuse_offline(url, spec.name)
        terms = "no licence stated" if weights.license == "none-stated" else f"licence {weights.license}"
        logger.warning("%s: weights of the official release, %s, see %s", spec.name, terms, weights.page or url)
    _fetch_checked(url, source, spec, weights)
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


def _refuse_offline(url: str, name: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"{name} is not in the cache and HF_HUB_OFFLINE is set: unset it to download {url}, or {_by_hand(name)}"
        )


def _source_file(work: Path, weights: WeightsSpec) -> Path:
    """Where the download goes: the same URL always continues the same file."""
    digest = hashlib.sha256(address(weights).encode()).hexdigest()[:8]
    return work / f"{digest}-{weights.location.rpartition('/')[2].replace(':', '-')}"


def _fetch_checked(url: str, source: Path, spec: ModelSpec, weights: WeightsSpec) -> None:
    """Downloads ``source`` unless it is there, twice where the first file is damaged."""
    for last in (False, True):
        if not source.is_file():
            _download(url, source, spec.name)
        with open(source, "rb") as file:
            is_page = file.read(512).lstrip().startswith(b"<")
        if is_page:
            source.unlink()
            raise ValueError(
                f"{url} answered with a web page instead of a checkpoint; a proxy or a login page may be "
                f"in between; {_by_hand(spec.name)}"
            )
        damage = _damage(source, weights)
        if damage is None:
            return
        source.unlink()
        if last:
            raise ValueError(f"{url} {damage}; deleted after two downloads; {_by_hand(spec.name)}")
        logger.warning("%s %s; downloading it again", url, damage)


def _damage(source: Path, weights: WeightsSpec) -> str | None:
    """What is wrong with a downloaded file: by the md5 in its name, else by the checksums inside a zip container."""
    if weights.md5_prefix is not None:
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest.startswith(weights.md5_prefix):
            return None
        return f"has the md5 {digest}, while its name promises {weights.md5_prefix}..."
    with open(source, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        try:
            with zipfile.ZipFile(source) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, EOFError) as error:
            return f"is a damaged archive ({error})"
        if damaged is not None:
            return f"is a damaged archive (checksum of {damaged})"
    return None


def _convert(source: Path, converted: Path, spec: ModelSpec, weights: WeightsSpec) -> None:
    """Writes the weights folder with its record; a source that cannot be converted is deleted."""
    from safetensors import SafetensorError

    from fapn_zoo.convert import convert_file

    url, size = address(weights), source.stat().st_size
    logger.info("converting %s (%s)", source.name, _readable(size))
    try:
        convert_file(source, spec, converted, weights=weights)
        record = {
            "url": url,
            "converter": CONVERTER,
            "fapn_zoo": __version__,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "source_sha256": file_sha256(source),
            "sha256": file_sha256(converted / WEIGHTS),
            "sizes": {name: (converted / name).stat().st_size for name in (WEIGHTS, CONFIG, CARD)},
        }
        (converted / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except ValueError as error:
        source.unlink()
        words = str(error).replace(str(source), "the downloaded file")
        raise ValueError(f"{url}: {words}; it was deleted") from error
    except (OSError, SafetensorError) as error:
        if (full := _disk_full(error)) is None:
            raise
        need = f"the converted weights take up to {_readable(size)}"
        raise _no_room(f"converting {source.name}", full, need, converted.parent) from error


def _download(url: str, source: Path, name: str) -> None:
    """Repeats `_attempt` until the file is there, or until nothing new has come `TRIES` times in a row."""
    _refuse_offline(url, name)
    most, failures = _size_so_far(source), 0
    while (reason := _attempt(url, source, name)) is not None:
        size = _size_so_far(source)
        failures = 1 if size > most else failures + 1
        most = max(most, size)
        if failures == TRIES:
            kept = f" ({_readable(size)} are kept, the next call goes on from there)" if size else ""
            raise ConnectionError(f"cannot download {url}: {reason}{kept}; try again later, or {_by_hand(name)}")
        pause = PAUSE * 2 ** (failures - 1)
        logger.warning("%s: %s; %s so far, again in %g s", url, reason, _readable(size), pause)
        time.sleep(pause)


def _attempt(url: str, source: Path, name: str) -> str | None:
    """Downloads the rest of a file. Returns None when it is whole, else a reason that a repetition may remove."""
    import gdown
    import requests

    before, progress = _size_so_far(source), _Progress(source)
    try:
        gdown.download(url, str(source), quiet=True, resume=True, use_cookies=False, timeout=TIMEOUT, progress=progress)
        return None
    except requests.HTTPError as error:
        status, words = error.response.status_code, f"HTTP {error.response.status_code} {error.response.reason}"
        if status >= 500 or status in (408, 429):
            return words
        kind = FileNotFoundError if status in (404, 410) else PermissionError
        raise kind(
            f"{url} answers {words}: the release was moved or withdrawn, or its server refuses this machine; "
            f"see the page of the release, or {_by_hand(name)}"
        ) from error
    except (gdown.FileURLRetrievalError, KeyError, AssertionError) as error:  # the latter two: an unforeseen page
        words = " ".join(str(error).split())
        if "too many users" in words.lower() or "quota" in words.lower():
            raise PermissionError(
                f"{url}: Google Drive's daily quota for this file is used up (too many accesses); try again in a day, "
                f"or {_by_hand(name)}"
            ) from error
        return "Google Drive shows a page instead of the file: it may be gone, not shared, or have too many accesses"
    except gdown.DownloadError as error:
        words = str(error).splitlines()[0].rstrip(".")
        if before and "incomplete" not in words:
            # A server that cannot continue, or a file that has changed since: only a new start helps.
            _parts(source, delete=True)
            words = "the server does not continue a download, which starts again"
        return words
    except requests.RequestException as error:
        return _cause(error)
    except OSError as error:
        if (full := _disk_full(error)) is None:
            raise
        left = "it" if progress.total is None else f"{_readable(progress.total - _size_so_far(source))} of it"
        need = f"{left} must still fit, and then the converted weights, up to as much as the whole"
        raise _no_room(f"downloading {url}", full, need, source.parent) from error
    finally:
        progress.close()


class _Progress:
    """Called by gdown after each block: draws a bar on a terminal, gives up at once where the rest cannot fit."""

    def __init__(self, source: Path):
        self.source, self.total, self.bar, self.begun = source, None, None, False

    def __call__(self, done: int, total: int | None) -> None:
        if not self.begun:
            self.begun, self.total = True, total
            if total is not None and total - done > shutil.disk_usage(self.source.parent).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sys.stderr.isatty():
                from tqdm import tqdm

                title = self.source.name.partition("-")[2]
                self.bar = tqdm(desc=title, total=total, initial=done, unit="B", unit_scale=True)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _parts(source: Path, delete: bool = False) -> list[Path]:
    """What gdown has of a file that is not whole: the name, eight characters of its own, and ``.part``."""
    parts = [
        path
        for path in source.parent.iterdir()
        if path.name.startswith(source.name) and path.suffix == ".part" and path != source
    ]
    for path in parts if delete else ():
        path.unlink()
    return parts


def _size_so_far(source: Path) -> int:
    return sum(path.stat().st_size for path in _parts(source))


def _disk_full(error: Exception) -> str | None:
    """The system's words where an error means that no more can be written; safetensors has them in its own."""
    for number in NO_ROOM:
        if getattr(error, "errno", None) == number or f"(os error {number})" in str(error):
            return os.strerror(number)
    return None


def _no_room(doing: str, why: str, need: str, folder: Path) -> OSError:
    free = _readable(shutil.disk_usage(folder).free)
    return OSError(
        f"no room for {doing} ({why}): {need}; {free} are free in {folder}; make room, or choose another "
        "place with cache_dir= or FAPN_ZOO_CACHE; what has arrived is kept"
    )


def _cause(error: Exception) -> str:
    """The innermost words of a connection error: requests, urllib3 and the system wrap one another's."""
    while inner := next((e for e in (getattr(error, "reason", None), *error.args) if isinstance(e, Exception)), None):
        error = inner
    return str(error).rpartition(": ")[2] or type(error).__name__


def _by_hand(name: str) -> str:
    return f"download it in a browser, run `fapn-zoo convert FILE --model {name} --out DIR` and load 'local-dir:DIR'"


def _readable(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"
