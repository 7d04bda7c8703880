"""The hosts of the official releases on loopback: an HTTPS proxy that answers for them itself, behind real TLS.

    with ReleaseServer(folder) as server:                   # folder: where the test's certificate authority is written
        server.files["https://dl.fbaipublicfiles.com/x/model_final_d8dbeb.pkl"] = data
        server.drive["1MGE6"] = data                        # by Google Drive id
        server.faults.append(Fault("cut", match="", times=1))
        run(env=os.environ | server.environment)            # HTTPS_PROXY and REQUESTS_CA_BUNDLE
        server.requests                                     # Request(...), in order of arrival; server.bytes_sent

Programs take part unchanged: they open a tunnel to `dl.fbaipublicfiles.com:443` and find a certificate for that name.
Every other host is refused, so a test that passes has talked to nobody else. Google Drive is played in the three steps
of a large file: a redirect to its content host, a page that asks to confirm an unscanned download by a form, the file.

Faults are those of `hub.faults`, matched against `"GET host/path?query"`, and four more: `page` answers with a web
page, `ignore-range` always sends the file from its start, `quota` is Google Drive's page for too many downloads,
`hold` waits at `fraction` of the file until the test calls `server.go.set()`.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from toys.hub.faults import CHUNK, Fault

FILES_HOST, DRIVE_HOST, CONTENT_HOST = "dl.fbaipublicfiles.com", "drive.google.com", "drive.usercontent.google.com"
MODIFIED = "Wed, 14 Jul 2021 09:00:00 GMT"

PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in to this network.</body></html>"
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">This file cannot be downloaded now.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Try again later.</p>
</body></html>"""
UNKNOWN = "<!DOCTYPE html><html><head><title>Error 404</title></head><body>There is no such file.</body></html>"
# One line, as Google sends it: gdown reads the form line by line.
CONFIRM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">This file is too large to be scanned for viruses.</p>
<form id="download-form" action="https://{host}/download" method="get">
<input type="submit" id="uc-download-link" value="Download anyway"/>
<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="{uuid}"></form>
</body></html>""".replace("\n", "")


@dataclass
class Request:
    """One request and what became of it; `range` is its Range header, `sent` counts bytes of file that left."""

    line: str
    range: str = ""
    status: int = 0
    sent: int = 0


class ReleaseServer:
    def __init__(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        self.drive: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.go = threading.Event()
        import trustme  # missing on a machine that only runs the tests of a GPU

        authority = trustme.CA()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(FILES_HOST, DRIVE_HOST, CONTENT_HOST).configure_cert(self.tls)
        bundle = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(bundle))
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.releases = self
        proxy = f"http://127.0.0.1:{self.http.server_port}"
        self.environment = {"REQUESTS_CA_BUNDLE": str(bundle), "CURL_CA_BUNDLE": str(bundle)}
        for name in ("https_proxy", "http_proxy", "all_proxy"):
            self.environment |= {name: proxy, name.upper(): proxy}
        self.environment |= {"no_proxy": "", "NO_PROXY": ""}
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def bytes_sent(self) -> int:
        return sum(request.sent for request in self.requests)

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            return next((fault for fault in self.faults if fault.strikes(line)), None)

    def reset(self) -> None:
        """Forgets requests and faults, and keeps the files."""
        self.faults.clear()
        self.requests.clear()
        self.go.clear()

    def close(self) -> None:
        self.go.set()
        self.http.shutdown()
        self.http.server_close()

    def __enter__(self) -> ReleaseServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host = ""  # of the tunnel

    def log_message(self, *args: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        host = self.path.partition(":")[0]
        if host not in (FILES_HOST, DRIVE_HOST, CONTENT_HOST):
            # Not counted: other libraries in this process ask for their own hosts through the same proxy.
            self.close_connection = True
            return self.answer(502, b"")
        self.send_response(200)
        self.end_headers()
        try:
            self.connection = self.server.releases.tls.wrap_socket(self.connection, server_side=True)
        except (OSError, ssl.SSLError):  # a client that does not know the authority
            self.close_connection = True
            return None
        self.host, self.close_connection = host, False  # tunnels are asked for with HTTP/1.0
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        return None

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        with contextlib.suppress(OSError):
            self.connection.close()

    def do_GET(self) -> None:
        releases = self.server.releases
        self.request_log = self.log(Request(f"GET {self.host}{self.path}", self.headers.get("Range", "")))
        fault = releases.fault(self.request_log.line)
        with contextlib.suppress(OSError):  # the client has gone
            if fault is not None and fault.kind == "status":
                return self.answer(fault.status, fault.message.encode(), **fault.headers)
            if fault is not None and fault.kind == "page":
                return self.answer(200, PAGE, **{"Content-Type": "text/html"})
            if self.host == FILES_HOST:
                return self.send_file(releases.files.get(f"https://{self.host}{self.path}"), fault)
            return self.play_drive(fault)

    def play_drive(self, fault: Fault | None) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        data, html = self.server.releases.drive.get(query.get("id", "")), {"Content-Type": "text/html; charset=utf-8"}
        if fault is not None and fault.kind == "quota":
            return self.answer(200, QUOTA.encode(), **html)
        if data is None or (self.host, url.path) not in ((DRIVE_HOST, "/uc"), (CONTENT_HOST, "/download")):
            return self.answer(404, UNKNOWN.encode(), **html)
        if self.host == DRIVE_HOST:
            where = f"https://{CONTENT_HOST}/download?id={query['id']}&export=download"
            return self.answer(303, b"", Location=where, **html)
        uuid = f"uuid-of-{query['id']}"
        if query.get("confirm") != "t" or query.get("uuid") != uuid:
            return self.answer(200, CONFIRM.format(host=CONTENT_HOST, id=query["id"], uuid=uuid).encode(), **html)
        return self.send_file(data, fault, **{"Content-Disposition": 'attachment; filename="model_final.pth"'})

    def send_file(self, data: bytes | None, fault: Fault | None, **headers: str) -> None:
        """The file or the rest of it, through the fault."""
        if data is None:
            return self.answer(404, b"")
        kind = None if fault is None else fault.kind
        if kind == "wrong":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
        elif kind == "short":
            data = data[: int(fault.fraction * len(data))]
        headers |= {"Content-Type": "application/octet-stream", "Last-Modified": MODIFIED, "Accept-Ranges": "bytes"}
        start, match = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and kind != "ignore-range" and self.headers.get("If-Range", MODIFIED) == MODIFIED:
            start = int(match[1])
            if start >= len(data):
                return self.answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.head(206 if "Content-Range" in headers else 200, len(data) - start, **headers)
        stop = int(fault.fraction * len(data)) if kind in ("cut", "stall") else len(data)
        for at in range(start, stop, CHUNK):
            if kind == "slow":
                time.sleep(fault.seconds)
            if kind == "hold" and at >= fault.fraction * len(data):
                self.server.releases.go.wait()
            block = data[at : min(at + CHUNK, stop)]
            self.wfile.write(block)
            self.request_log.sent += len(block)
        if kind == "stall":
            time.sleep(fault.seconds)
        if kind in ("cut", "stall"):
            self.close_connection = True
        return None

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.head(status, len(body), **headers)
        self.wfile.write(body)

    def head(self, status: int, length: int, **headers: str) -> None:
        if self.host:
            self.request_log.status = status
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            self.send_header(name, value)
        self.end_headers()

    def log(self, request: Request) -> Request:
        with self.server.releases.lock:
            self.server.releases.requests.append(request)
        return request
