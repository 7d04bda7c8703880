"""A Hub on loopback that serves one weights folder: as much of the Hub's HTTP interface as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves ``folder`` as the model repository ``repo`` with the revisions ``main`` and ``v2``; counts requests."""

    def __init__(self, folder: Path, repo: str = "me/streets"):
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body: bool):
                path = self.path.split("?")[0]
                hub.requests.append(f"{self.command} {path}")
                for revision in ("main", "v2", COMMIT):
                    if path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/{revision}"):
                        files = [{"rfilename": p.name} for p in sorted(folder.iterdir())]
                        text = json.dumps({"id": repo, "sha": COMMIT, "siblings": files, "private": False, "tags": []})
                        return self.send(text.encode(), {"Content-Type": "application/json"}, body)
                    if path.startswith(f"/api/models/{repo}/tree/{revision}"):
                        files = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                                 for p in sorted(folder.iterdir())]
                        return self.send(json.dumps(files).encode(), {"Content-Type": "application/json"}, body)
                    prefix = f"/{repo}/resolve/{revision}/"
                    if path.startswith(prefix) and (folder / path.removeprefix(prefix)).is_file():
                        data = (folder / path.removeprefix(prefix)).read_bytes()
                        etag = f'"{hashlib.sha256(data).hexdigest()}"'
                        return self.send(data, {"ETag": etag, "X-Repo-Commit": COMMIT}, body)
                missing = "RepoNotFound" if f"/{repo}" not in path else "RevisionNotFound"
                return self.send(b"{}", {"X-Error-Code": missing}, body, status=404)

            def send(self, data: bytes, headers: dict[str, str], body: bool, status: int = 200):
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(data))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
