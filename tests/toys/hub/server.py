"""A Hub on loopback: as much of the Hub's HTTP interface as the real client needs to download and to upload.

    hub = Hub()                                   # listens on 127.0.0.1, see hub.url (for HF_ENDPOINT)
    hub.tokens["hf_mine"] = "me"                  # token -> user; users write below their own name only
    commit = hub.add("me/streets", folder)        # or {"config.json": b"..."}; tags=("v2",), private=, gated=
    hub.repositories["me/streets"].resolve("main").files["config.json"].data
    hub.faults.append(Fault("cut", times=1))      # see hub/faults.py
    hub.requests                                  # Request(method, path, status, sent, headers), in order of arrival
    hub.close()                                   # or: with Hub() as hub

Downloads: model info, tree, paths-info, refs, resolve (HEAD, GET, ranges; large files by a redirect to `/cdn/`
on another port).
Uploads (for owners with a token): whoami, create and delete repository, settings, branch, tag, validate-yaml,
preupload, LFS batch with basic transfer and verify, commit.

With `hub.xet = True` large files are offered from Xet storage too, and a client with hf_xet installed takes them from
there. Nothing can be uploaded to it, and such a client does not ask before it tries: set `HF_HUB_DISABLE_XET=1` for
uploads, so that it takes LFS.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from toys.hub.faults import CHUNK, Fault
from toys.hub.repositories import Blob, Commit, Refused, Repository, read_folder
from toys.hub.uploads import UPLOADS
from toys.hub.xet import XET, xet_headers

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
JSON = {"Content-Type": "application/json"}


@dataclass
class Request:
    """One request and what became of it; `sent` counts bytes of the body that left."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Hub:
    """See the module's text. Attributes may be changed between requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # uploaded large files by sha256, whether committed or not
        self.tokens: dict[str, str] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.xet = False
        self.lock = threading.Lock()
        self.closing = threading.Event()
        handler = type("Bound", (Handler,), {"hub": self})
        # Two ports, since the client follows redirects to another origin in another way, and without the token.
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def add(
        self,
        name: str,
        files: Path | dict[str, bytes],
        *,
        tags: tuple[str, ...] = (),
        private: bool = False,
        gated: bool = False,
    ) -> Commit:
        """Makes the repository where it is not there, and one commit on its main branch."""
        repository = self.repositories.setdefault(name, Repository(name))
        repository.private, repository.gated = private, gated
        commit = repository.commit(files if isinstance(files, dict) else read_folder(files))
        repository.tags |= dict.fromkeys(tags, commit.id)
        return commit

    def sent(self, match: str = "^GET ") -> int:
        """Bytes that left in answers to requests that match."""
        return sum(request.sent for request in self.requests if re.search(match, str(request)))

    def count(self, match: str = "") -> int:
        """Number of requests that match."""
        return sum(bool(re.search(match, str(request))) for request in self.requests)

    def close(self) -> None:
        self.closing.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def card_of(commit: Commit) -> dict[str, Any]:
    """The metadata at the head of a README."""
    text = commit.files["README.md"].data.decode() if "README.md" in commit.files else ""
    return yaml.safe_load(text.split("---")[1]) or {} if text.startswith("---") else {}


class Handler(BaseHTTPRequestHandler):
    """One connection. Subclassed with the Hub that it serves."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:  # the names that http.server calls
        url = urlsplit(self.path)
        # Data sets have pages of their own; here one name is of one repository, whatever it holds.
        path = re.sub(
            r"^/(?:datasets|(api)/datasets)/", lambda found: f"/{'api/models/' if found[1] else ''}", url.path
        )
        self.url_path, self.query = path, parse_qs(url.query)
        self.body = self.read_body()
        self.request_log = Request(self.command, self.url_path, {k.lower(): v for k, v in self.headers.items()})
        with self.hub.lock:
            self.hub.requests.append(self.request_log)
            self.fault = next((f for f in self.hub.faults if f.strikes(str(self.request_log))), None)
        with contextlib.suppress(ConnectionError):
            try:
                if self.fault is not None and self.fault.kind == "mute":
                    self.close_connection = True
                    self.hub.closing.wait(60)
                    return
                if self.fault is not None and self.fault.kind == "status":
                    raise Refused(self.fault.status, "", self.fault.message, **self.fault.headers)
                self.route()
            except Refused as refused:
                text = json.dumps({"error": refused.message or str(refused.status)}).encode()
                self.send(text, refused.headers | JSON, refused.status)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def json_body(self) -> dict:
        return json.loads(self.body or b"{}")

    def route(self) -> None:
        for methods, pattern, action in ROUTES:
            match = re.fullmatch(pattern, self.url_path)
            if match and self.command in methods:
                return action(self, **{key: unquote(value) for key, value in match.groupdict().items() if value})
        raise Refused(404, "", f"no such page {self.url_path}")

    # who asks, and what for

    def user(self) -> str | None:
        """The user of the token that was sent; None without one."""
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if token not in self.hub.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def repository(self, name: str, *, files: bool = False, write: bool = False) -> Repository:
        """The repository, if this user may see it (and its files, and write to it)."""
        user, found = self.user(), self.hub.repositories.get(name)
        if found is None or (found.private and user != found.owner):
            # The Hub does not tell strangers whether a name exists.
            raise Refused(
                404 if user else 401,
                "RepoNotFound",
                "Repository not found" if user else "Invalid username or password.",
            )
        if write:
            if user is None:
                raise Refused(401, "", "Invalid username or password.")
            if user != found.owner:
                raise Refused(403, "", f"You don't have the rights to write to {name}")
        if files and found.gated and user not in found.granted | {found.owner}:
            raise Refused(403 if user else 401, "GatedRepo", f"Access to model {name} is restricted.")
        return found

    def commit_of(self, repository: Repository, revision: str) -> Commit:
        commit = repository.resolve(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # downloads

    def model_info(self, repo: str, revision: str = "main") -> None:
        repository = self.repository(repo)
        commit = self.commit_of(repository, revision)
        self.send_json(
            {
                "_id": hashlib.md5(repo.encode()).hexdigest()[:24],
                "id": repo,
                "modelId": repo,
                "author": repository.owner,
                "sha": commit.id,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in commit.files],
                "cardData": card_of(commit),
            }
        )

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        commit = self.commit_of(self.repository(repo), revision)
        prefix = f"{folder.strip('/')}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = [
            entry(path, blob)
            for path, blob in commit.files.items()
            if path.startswith(prefix) and (recursive or "/" not in path.removeprefix(prefix))
        ]
        below = {path.removeprefix(prefix).split("/")[0] for path in commit.files if path.startswith(prefix)}
        folders = sorted(name for name in below if f"{prefix}{name}" not in commit.files) if not recursive else []
        oid = hashlib.sha1(b"folder").hexdigest()
        entries += [{"type": "directory", "oid": oid, "size": 0, "path": f"{prefix}{name}"} for name in folders]
        self.send_json(entries)

    def paths_info(self, repo: str, revision: str) -> None:
        commit = self.commit_of(self.repository(repo), revision)
        kind = self.headers.get("Content-Type", "")
        wanted = self.json_body()["paths"] if "json" in kind else parse_qs(self.body.decode()).get("paths", [])
        self.send_json([entry(path, commit.files[path]) for path in wanted if path in commit.files])

    def refs(self, repo: str) -> None:
        repository = self.repository(repo)
        self.send_json(
            {"converts": [], "pullRequests": []}
            | {
                kind: [
                    {"name": name, "ref": f"refs/{short}/{name}", "targetCommit": commit}
                    for name, commit in named.items()
                ]
                for kind, short, named in (
                    ("branches", "heads", repository.branches),
                    ("tags", "tags", repository.tags),
                )
            }
        )

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self.commit_of(self.repository(repo, files=True), revision)
        if path not in commit.files:
            raise Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.id})
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.id, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if not blob.lfs:
            return self.send_range(blob.data, headers)
        headers |= {
            "X-Linked-ETag": f'"{blob.etag}"',
            "X-Linked-Size": str(len(blob.data)),
            "Location": f"{self.hub.cdn_url}/cdn/{repo}/{commit.id}/{path}",
        }
        if self.hub.xet:
            headers |= xet_headers(self, repo, commit.id, blob)
        self.send(b"Found", headers, 302)

    def cdn(self, repo: str, commit: str, path: str) -> None:
        """Where large files lie; on the real Hub a signed address on another host."""
        blob = self.hub.repositories[repo].commits[commit].files[path]
        self.send_range(blob.data, {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"})

    # answers

    def send_json(self, data: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(json.dumps(data).encode(), JSON | (headers or {}), status)

    def send_range(self, data: bytes, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            return self.send(data, headers)
        first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
        if first >= len(data):
            return self.send(b"", headers | {"Content-Range": f"bytes */{len(data)}"}, 416)
        self.send(data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, 206)

    def send(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
        kind = self.fault.kind if self.fault else ""
        stop = int(len(data) * self.fault.fraction) if kind in ("stall", "cut", "short") else len(data)
        if kind == "wrong" and data:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self.request_log.status = status
        self.send_response(status)
        length = stop if kind == "short" else len(data)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, stop, CHUNK):
            if kind == "slow":
                time.sleep(self.fault.seconds)
            part = data[start : min(start + CHUNK, stop)]
            self.wfile.write(part)
            self.request_log.sent += len(part)
        if kind == "stall":
            self.hub.closing.wait(60)
        if kind in ("stall", "cut"):
            self.close_connection = True


def entry(path: str, blob: Blob) -> dict:
    """A file as the tree and paths-info calls describe it."""
    found = {"type": "file", "oid": blob.git_oid, "size": len(blob.data), "path": path}
    if blob.lfs:
        found["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    return found


READ, WRITE = ("GET", "HEAD"), ("POST", "PUT", "DELETE")
ROUTES: list[tuple[tuple[str, ...], str, Callable]] = [
    (READ, rf"/api/models/{REPO}(?:/revision/(?P<revision>[^/]+))?", Handler.model_info),
    (READ, rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    (("POST",), rf"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    (READ, rf"/api/models/{REPO}/refs", Handler.refs),
    (READ, rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    (READ, rf"/cdn/{REPO}/(?P<commit>[^/]+)/(?P<path>.+)", Handler.cdn),
    *UPLOADS,
    *XET,
]
