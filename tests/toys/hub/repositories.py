"""What the loopback Hub stores: repositories with commits, branches and tags, in memory."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

LFS_LIMIT = 10 * 2**20  # bytes; larger files go to large-file storage whatever their name
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx")


def needs_lfs(path: str, size: int) -> bool:
    """Whether the Hub would keep the file in large-file storage."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_LIMIT)


def git_sha1(data: bytes) -> str:
    """The id that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Refused(Exception):
    """An answer other than 200: status, the Hub's error code and message."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.status, self.message = status, message
        self.headers = ({"X-Error-Code": code} if code else {}) | ({"X-Error-Message": message} if message else {})
        self.headers |= headers


@dataclass(frozen=True)
class Blob:
    """Content of one file, either in git or in large-file storage."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """What git itself holds for a file in large-file storage."""
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        ).encode()

    @cached_property
    def git_oid(self) -> str:
        return git_sha1(self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        """sha256 of the content for large files, git's id for the others, as the Hub has it."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    id: str
    files: dict[str, Blob]
    title: str
    parent: str | None


@dataclass
class Repository:
    """`private`: only its owner sees it. `gated`: all see it, only users in `granted` get its files."""

    name: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    _count: itertools.count = field(default_factory=itertools.count)

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    def resolve(self, revision: str) -> Commit | None:
        """The commit of a branch, tag or commit id."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def commit(self, files: dict[str, bytes | Blob], title: str = "files", branch: str = "main") -> Commit:
        """Makes `files` the whole content of the branch, and returns the new commit."""
        blobs = {
            path: data if isinstance(data, Blob) else Blob(data, needs_lfs(path, len(data)))
            for path, data in sorted(files.items())
        }
        parent = self.branches.get(branch)
        lines = [f"{self.name} {next(self._count)} {parent} {title}"]
        lines += [f"{path} {blob.git_oid}" for path, blob in blobs.items()]
        made = Commit(hashlib.sha1("\n".join(lines).encode()).hexdigest(), blobs, title, parent)
        self.commits[made.id] = made
        self.branches[branch] = made.id
        return made


def read_folder(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their path in the repository."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
