"""One file of an official release, from its server to the disk: fetched with gdown, checked, each failure one line."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import zipfile
from pathlib import Path

from tqdm import tqdm

from fapn_zoo.runtime.files import NO_ROOM
from fapn_zoo.weights.digests import file_digest
from fapn_zoo.weights.failures import PASSING_STATUS, Failure, causes, is_unresolved, patiently, system_number
from fapn_zoo.zoo.spec import WeightsSpec

logger = logging.getLogger(__name__)

ATTEMPTS = 4  # in a row that bring nothing new
TIMEOUT = (15, 60)  # seconds to connect, and between two blocks


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
        As `fapn_zoo.convert.official.fetch`.
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
