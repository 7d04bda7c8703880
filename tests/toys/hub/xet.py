"""The reading half of a Xet storage on loopback: where the real Hub keeps large files, and hf_xet fetches them from.

A file is a list of terms, each a range of chunks of one stored object; an object is a row of chunks with headers of
eight bytes. Here a file is one object of uncompressed chunks. Protocol: huggingface.co/docs/xet.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from toys.hub.repositories import Blob, Refused

if TYPE_CHECKING:
    from toys.hub.server import Handler

CHUNK = 2**16  # bytes; the format allows 8 to 128 KiB
TOKEN = "xet-token"


def xet_hash(blob: Blob) -> str:
    """A name of 64 hexadecimal digits. The real one is a tree of hashes over the chunks, which readers do not check."""
    return hashlib.sha256(b"xet" + blob.sha256.encode()).hexdigest()


def packed(data: bytes) -> bytes:
    """The stored object: per chunk a version, the stored length, how it is compressed (0: not), and its length."""
    parts = []
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        length = len(chunk).to_bytes(3, "little")
        parts += [b"\0", length, b"\0", length, chunk]
    return b"".join(parts)


def xet_headers(ask: Handler, repo: str, commit: str, blob: Blob) -> dict[str, str]:
    """What the answer to a HEAD request says to a client that can read Xet."""
    route = f"{ask.hub.url}/api/models/{repo}/xet-read-token/{commit}"
    return {"X-Xet-Hash": xet_hash(blob), "Link": f'<{route}>; rel="xet-auth"'}


def read_token(ask: Handler, repo: str, revision: str) -> None:
    ask.repository(repo, files=True)
    expires = int(time.time()) + 3600
    answer = {"accessToken": TOKEN, "exp": expires, "casUrl": ask.hub.cdn_url}
    ask.send_json(
        answer,
        headers={"X-Xet-Cas-Url": ask.hub.cdn_url, "X-Xet-Access-Token": TOKEN, "X-Xet-Token-Expiration": str(expires)},
    )


def find(ask: Handler, name: str) -> Blob:
    for repository in ask.hub.repositories.values():
        for commit in repository.commits.values():
            for blob in commit.files.values():
                if blob.lfs and xet_hash(blob) == name:
                    return blob
    raise Refused(404, "", f"no file {name}")


def reconstruction(ask: Handler, name: str) -> None:
    """Of which chunks of which object the file, or the wanted range of it, is made."""
    if ask.headers.get("Authorization") != f"Bearer {TOKEN}":
        raise Refused(401, "", "no Xet token")
    data = find(ask, name).data
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", ask.headers.get("Range", ""))
    first = int(wanted[1]) if wanted else 0
    last = min(int(wanted[2]) if wanted and wanted[2] else len(data), len(data) - 1)
    if first >= len(data):
        raise Refused(416, "", "beyond the end")
    chunks = {"start": first // CHUNK, "end": last // CHUNK + 1}
    size = min(chunks["end"] * CHUNK, len(data)) - chunks["start"] * CHUNK
    stored = {
        "start": chunks["start"] * (CHUNK + 8),
        "end": min(chunks["end"] * CHUNK, len(data)) + 8 * chunks["end"] - 1,
    }
    ask.send_json(
        {
            "offset_into_first_range": first - chunks["start"] * CHUNK,
            "terms": [{"hash": name, "unpacked_length": size, "range": chunks}],
            "fetch_info": {
                name: [{"range": chunks, "url": f"{ask.hub.cdn_url}/xet-object/{name}", "url_range": stored}]
            },
        }
    )


def stored_object(ask: Handler, name: str) -> None:
    ask.send_range(packed(find(ask, name).data), {})


XET: list[tuple[tuple[str, ...], str, Callable]] = [
    (("GET",), r"/api/models/(?P<repo>[\w.-]+/[\w.-]+)/xet-read-token/(?P<revision>[^/]+)", read_token),
    (("GET",), r"/v1/reconstructions/(?P<name>[0-9a-f]{64})", reconstruction),
    (("GET",), r"/xet-object/(?P<name>[0-9a-f]{64})", stored_object),
]
