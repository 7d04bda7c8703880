"""The only module that talks to the Hugging Face Hub.

The transfer and the cache are huggingface_hub's. Added here: every file is compared with the digest that the Hub gave
for it, passing trouble is waited for within bounds, and what remains is said in one line with what to do about it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fapn_zoo import __version__
from fapn_zoo.runtime.files import write_text
from fapn_zoo.weights import CARD, CONFIG, WEIGHTS, failures
from fapn_zoo.weights.digests import digests, file_digest, has_digest
from fapn_zoo.weights.failures import Absent, Failure, Missing, Offline, Wish, explained, patiently

logger = logging.getLogger(__name__)

LIBRARY = {"library_name": "fapn-zoo", "library_version": __version__}  # for the Hub's counts of downloads
REVISION = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")  # it becomes a path in the cache


@dataclass(frozen=True)
class _Source:
    """One revision of a repository and how to get at it; `name` is what the user wrote."""

    name: str
    repo_id: str
    revision: str
    cache_dir: str | None

    @property
    def pinned(self) -> bool:
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None

    @property
    def cache(self) -> Path:
        from huggingface_hub import constants

        return Path(self.cache_dir or constants.HF_HUB_CACHE)

    def explained(self, filename: str, size: int | None = None) -> contextlib.AbstractContextManager[None]:
        return explained(Wish("download", self.repo_id, self.revision, filename, str(self.cache), size))

    def cached(self, filename: str, commit: str | None = None) -> Path | None:
        """The file in the cache, whatever the Hub says."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repo_id, filename, self.cache_dir, commit or self.revision)
        return Path(found) if isinstance(found, str) else None


def download(
    repository: str, *, cache_dir: str | Path | None = None, sha256: str | None = None, weights: bool = True
) -> Path:
    """Fetches a weights folder through huggingface_hub's cache and returns its path.

    A revision that is a commit and lies in the cache needs no network. A branch or tag is looked up at the Hub; where
    that fails and the cache holds all of what it last pointed to, that is used, and a log line says so.

    Args:
        repository: `owner/name` or `owner/name@revision` (a branch, a tag or the 40 digits of a commit).
        cache_dir: None is the client's own place (`HF_HOME`). `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`
            are honoured by the client.
        sha256: expected digest of `model.safetensors`, in addition to the one that the Hub gives for each file.
        weights: False fetches the description only.

    Raises:
        ValueError: a malformed name, or a repository, revision or file that cannot be had, in one line that says why
            and what to do. What is whole stays in the cache, what comes damaged does not. A file of the cache that is
            damaged stays until another one has come, and where none comes, the line says so.
    """
    source = _source(repository, cache_dir)
    try:
        commit = _commit(source, [CONFIG, WEIGHTS][: 1 + weights])
        folder = _file(source, commit, CONFIG).parent
        if weights:
            path = _file(source, commit, WEIGHTS, sha256)
            if sha256 is not None and _blob(path).name != sha256 and not has_digest(path, sha256):
                raise _other_digest(source, path.name, file_digest(path), sha256)
        with contextlib.suppress(Failure):  # nothing needs the card to run
            _file(source, commit, CARD, attempts=1)
        _point(source, folder)
    except Failure as failure:
        raise ValueError(f"cannot fetch {repository!r} from the Hub: {failure}") from failure
    return folder


def download_file(repository: str, filename: str, *, cache_dir: str | Path | None = None) -> Path | None:
    """One file of any repository, in the same way as `download`; None where the repository holds no such file."""
    source = _source(repository, cache_dir)
    try:
        commit = _commit(source, [filename])
        path = _file(source, commit, filename)
        _point(source, path.parent)
    except Missing:
        return None
    except Failure as failure:
        raise ValueError(f"cannot fetch {filename} of {repository!r} from the Hub: {failure}") from failure
    return path


def _source(repository: str, cache_dir: str | Path | None) -> _Source:
    repo_id, at, revision = repository.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) or (at and not REVISION.fullmatch(revision)):
        raise ValueError(f"Hub repository {repository!r}; expected 'owner/name' or 'owner/name@revision'")
    cache = None if cache_dir is None else str(Path(cache_dir).expanduser())
    return _Source(repository, repo_id, revision or "main", cache)


def _commit(source: _Source, wanted: list[str]) -> str:
    """The commit that the revision points to: at the Hub, or in the cache where that cannot be reached."""
    if source.pinned:
        return source.revision
    known = source.cached(wanted[0])
    commit = known.parent.name if known else None
    missing = [filename for filename in wanted if commit is None or source.cached(filename, commit) is None]
    asked = (missing or wanted)[0]
    try:
        return patiently(
            lambda: _metadata(source, source.revision, asked), failures.ATTEMPTS if missing else 1
        ).commit_hash
    except Failure as failure:
        if missing or isinstance(failure, Absent):
            raise
        if isinstance(failure, Offline):
            logger.info("%s: HF_HUB_OFFLINE is set; taking commit %s from the cache", source.name, commit[:12])
        else:
            logger.warning("%s: %s; taking commit %s from the cache", source.name, failure.reason, commit[:12])
        return commit


def _file(
    source: _Source, commit: str, filename: str, sha256: str | None = None, attempts: int = failures.ATTEMPTS
) -> Path:
    """One whole file of a commit, from the cache or the Hub; a damaged one stays until another has come."""
    told: list[str] = []

    def attempt() -> Path:
        path = source.cached(filename, commit)
        damage = None if path is None else _damage(path, None)
        if path is not None and damage is None:
            return path
        if damage is not None and damage not in told:
            told.append(damage)
            logger.warning("%s, in the cache, %s; fetching it again", path, damage)
        try:
            found = _metadata(source, commit, filename)
            if sha256 is not None and len(found.etag) == 64 and found.etag != sha256:
                raise _other_digest(source, filename, found.etag, sha256)
            return _transfer(source, commit, filename, found, anew=damage is not None)
        except Failure as failure:
            if damage is None or not path.exists():
                raise
            raise failures.irreplaceable(failure, f"{path}, in the cache, {damage}") from failure

    return patiently(attempt, attempts)


def _metadata(source: _Source, revision: str, filename: str) -> Any:
    """What the Hub says of a file without sending it: `commit_hash`, `etag`, `size`."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    with source.explained(filename):
        found = get_hf_file_metadata(hf_hub_url(source.repo_id, filename, revision=revision), **LIBRARY)
    if found.commit_hash is None or found.etag is None:
        raise Failure(f"{constants.ENDPOINT} does not answer as a Hub does", "check HF_ENDPOINT, proxy and firewall")
    return found


def _transfer(source: _Source, commit: str, filename: str, found: Any, anew: bool) -> Path:
    """Lets the client fetch a file into its cache, which it does whole or not at all, and verifies it."""
    from huggingface_hub import hf_hub_download

    with source.explained(filename, found.size):
        place = {"revision": commit, "cache_dir": source.cache_dir}
        path = Path(hf_hub_download(source.repo_id, filename, force_download=anew, **place, **LIBRARY))
    _check_content(path, found.etag)
    return path


def _blob(path: Path) -> Path:
    """What a file of a snapshot links to, whose name is the Hub's digest; itself in a cache without links."""
    return path.parent / os.readlink(path) if path.is_symlink() else path


def _damage(path: Path, etag: str | None) -> str | None:
    """What is wrong with a file, in words that follow its name; None for one that is what the Hub announced.

    `etag` is what the Hub says now; a cache with links has it in the name of the linked file.
    """
    digest = _blob(path).name if path.is_symlink() else etag
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest or ""):
        return None  # a mirror with etags of its own
    try:
        if has_digest(path, digest):
            return None
        size, found = path.stat().st_size, digests(path, len(digest))[0]
        return f"is damaged ({size} bytes with digest {found}, the Hub announced {digest})"
    except FileNotFoundError as error:  # another process that found the same
        raise Failure(f"{path.name} has vanished from the cache", "try again", passing=True) from error
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _check_content(path: Path, etag: str) -> None:
    """Throws a file that has come and is not what the Hub announced out of the cache, and raises."""
    damage = _damage(path, etag)
    if damage is None:
        return
    for place in (path.resolve(), path):
        place.unlink(missing_ok=True)
    said = f"{path.name} was damaged on the way and has been thrown away: it {damage}"
    raise Failure(said, "try again later or over another connection", passing=True)


def _other_digest(source: _Source, filename: str, found: str, expected: str) -> Failure:
    advice = f"update that, or take the repository as it is with 'hf-hub:{source.name}'"
    said = f"{filename} has sha256 {found}, expected {expected}"
    return Failure(said, f"the repository has changed since this version of fapn-zoo: {advice}")


def _point(source: _Source, folder: Path) -> None:
    """Notes in the cache which commit a branch or tag points to, for when the Hub cannot be reached."""
    if source.pinned:
        return
    known = source.cached(WEIGHTS)
    if known is not None and not (folder / WEIGHTS).exists():
        return  # a whole older state is worth more offline than a description
    reference = folder.parent.parent / "refs" / source.revision
    with contextlib.suppress(OSError):
        if not reference.is_file() or reference.read_text() != folder.name:
            reference.parent.mkdir(parents=True, exist_ok=True)
            write_text(reference, folder.name)
