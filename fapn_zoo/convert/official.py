"""Weights of the official releases: downloaded once with gdown, checked, converted, and kept as a weights folder.

Nothing is redistributed: the file comes from where its authors put it, and its terms are shown when it is fetched.
Below the cache root (`fapn_zoo.runtime.files.cache_root`):

    official/<model>.<tag>/            the weights folder and `record.json`; it appears whole or not at all
    official/.<model>.<tag>.partial/   the download so far, and the folder being converted
    official/.<model>.<tag>.lock       held by the one process that fills these two
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from fapn_zoo import __version__
from fapn_zoo.runtime.files import NO_ROOM, cache_root, read_json, write_json
from fapn_zoo.weights import CARD, CONFIG, WEIGHTS, hub
from fapn_zoo.weights.digests import file_digest, has_digest
from fapn_zoo.weights.failures import PASSING_STATUS, Failure, causes, is_unresolved, patiently, system_number
from fapn_zoo.zoo.spec import ModelSpec, WeightsSpec

logger = logging.getLogger(__name__)

RECORD = "record.json"
# Raised when converted tensors get other names or values than before: folders of an older number are made again.
CONVERTER = 1
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
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
    try:
        record, file = read_json(folder / RECORD), folder / WEIGHTS
        if (record["url"], record["converter"]) != (address(weights), CONVERTER):
            return f"{folder} was made from another release or by an older version"
        for name in (CONFIG, CARD):
            (folder / name).stat()
        if has_digest(file, record["sha256"]):
            return None
        return f"{file}, in the cache, is damaged (sha256 {file_digest(file)} instead of {record['sha256']})"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder}, in the cache, is damaged ({type(error).__name__}: {error})"


def _make(folder: Path, work: Path, spec: ModelSpec, weights: WeightsSpec) -> None:
    """Downloads and converts; where the file turns out to be damaged, once more."""
    source, converted, url = source_file(work, weights), work / "converted", address(weights)
    source.parent.mkdir(parents=True, exist_ok=True)
    for leftover in work.iterdir():  # of another release, or of a conversion that was killed
        if leftover != source.parent:
            shutil.rmtree(leftover)
    for last in (False, True):
        if not source.is_file():
            _download(url, source, weights, spec.name)
        try:
            _convert(source, converted, spec, weights)
            break
        except ValueError as error:
            source.unlink()
            words = str(error).replace(str(source), "the downloaded file")
            if last:
                raise ValueError(f"{url}: {words}; deleted after two downloads; {_by_hand(spec.name)}") from error
            logger.warning("%s: %s; downloading it again", url, words)
    if folder.exists():
        os.replace(folder, work / "damaged")
    os.replace(converted, folder)
    shutil.rmtree(work, ignore_errors=True)
    logger.info("%s: converted and kept in %s", spec.name, folder)


def source_file(work: Path, weights: WeightsSpec) -> Path:
    """Where the download goes: the same URL always continues the same file, in a folder of its own."""
    digest = hashlib.sha256(address(weights).encode()).hexdigest()[:8]
    return work / digest / weights.location.rpartition("/")[2].replace(":", "-")


def _convert(source: Path, converted: Path, spec: ModelSpec, weights: WeightsSpec) -> None:
    """Writes the weights folder with its record. ValueError for a source that is not the released file."""
    from fapn_zoo.convert import convert_file

    md5 = file_digest(source, "md5")
    if not md5.startswith(weights.md5_prefix or ""):
        promised = f"while its name promises {weights.md5_prefix}...: it is damaged, or a page of a proxy"
        raise ValueError(f"{source} has the md5 {md5}, {promised}")
    logger.info("converting %s (%s)", source.name, readable(source.stat().st_size))
    convert_file(source, spec, converted, weights=weights)
    record = {
        "url": address(weights),
        "converter": CONVERTER,
        "fapn_zoo": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "source_sha256": file_digest(source),
        "sha256": file_digest(converted / WEIGHTS),
    }
    write_json(converted / RECORD, record)


def address(weights: WeightsSpec) -> str:
    """The URL of an official file, which a browser takes too. Raises ValueError for any other location."""
    scheme, _, rest = weights.location.partition(":")
    if scheme == "gdrive" and rest:
        return f"https://drive.google.com/uc?id={rest}"
    if scheme == "hf" and rest:
        return f"https://huggingface.co/{rest}"
    if scheme == "https":
        return weights.location
    known = "an https URL, 'gdrive:FILE_ID' or 'hf:OWNER/NAME'"
    raise ValueError(f"official weights at {weights.location!r}; expected {known}")


def _download(url: str, source: Path, weights: WeightsSpec, model: str) -> None:
    """Fetches a file and shows its terms; what has arrived of it lies in its folder, which is this download's alone."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        reason = f"{model} is not in the cache and HF_HUB_OFFLINE is set"
        raise FileNotFoundError(f"{reason}: unset it to download {url}, or {_by_hand(model)}")
    terms = "no licence stated" if weights.license == "none-stated" else f"licence {weights.license}"
    logger.warning("%s: weights of the official release, %s, see %s", model, terms, weights.page or url)
    try:
        if weights.location.startswith("hf:"):
            return _from_hub(weights.location.removeprefix("hf:"), source)
        patiently(lambda: _attempt(url, source, model), ATTEMPTS, lambda: _arrived(source))
    except Failure as failure:
        raise failure.kind(str(failure)) from failure


def _from_hub(repository: str, source: Path) -> None:
    """The weights of somebody else's repository, checked by their digest; ConnectionError where they cannot be had."""
    try:
        found = (hub.download_file(repository, name, cache_dir=source.parent / "hub") for name in HUB_FILES)
        path = next((path for path in found if path is not None), None)
    except ValueError as error:
        raise ConnectionError(str(error)) from error
    if path is None:
        raise FileNotFoundError(f"{repository} at the Hub holds neither {' nor '.join(HUB_FILES)}")
    shutil.move(path.resolve(), source)


def readable(size: int) -> str:
    """Bytes as people write them."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _attempt(url: str, source: Path, model: str) -> None:
    """Downloads the rest of a file. What another attempt may mend is a `Failure`, all else a built-in error."""
    import gdown
    import requests

    going_on = _arrived(source) > 0
    bar = tqdm(desc=source.name, disable=None, unit="B", unit_scale=True)  # None: but on a terminal

    def show(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    try:
        gdown.download(url, str(source), quiet=True, resume=True, use_cookies=False, timeout=TIMEOUT, progress=show)
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
        words = f"no room for downloading {url} to {source.parent} ({os.strerror(number)})"
        advice = "make room, or choose another place with cache_dir= or FAPN_ZOO_CACHE; what has arrived is kept"
        raise OSError(f"{words}; {advice}") from error
    finally:
        bar.close()


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
