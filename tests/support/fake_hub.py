"""A small Hugging Face hub on 127.0.0.1: each repository is a folder, some are gated, all other names are unknown."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789" * 4
API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?$")
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)$")


@contextmanager
def serve_locally(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve `handler` on a free port inside the context; yield the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class FakeHub:
    """A hub. `models` and `datasets`: repository name -> folder of its files.

    `gated`: names of gated repositories. `failing`: repository name -> status of every reply about it. `asked`: paths of all requests. `address`: URL of the hub while it serves.
    """

    models: dict[str, Path] = field(default_factory=dict)
    datasets: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    failing: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def files(self, kind: str, name: str) -> dict[str, bytes] | None:
        """Return the files of a repository by relative path, or None if the hub does not have it."""
        folder = (self.models if kind == "models" else self.datasets).get(name)
        if folder is None:
            return None
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    @contextmanager
    def serve(self) -> Iterator["FakeHub"]:
        """Serve the hub on a free port inside the context."""
        with serve_locally(type("BoundHandler", (Handler,), {"hub": self})) as self.address:
            yield self


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub and datasets, byte ranges included."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append(path)
        failing = next((status for name, status in self.hub.failing.items() if f"/{name}" in path), None)
        if failing is not None:
            self._reply(failing, b"")
        elif api := API.fullmatch(path):
            self._api(*api.groups(), body)
        elif resolve := RESOLVE.fullmatch(path):
            self._resolve("datasets" if resolve[1] else "models", resolve[2], resolve[3])
        else:
            self._reply(200 if path == "/" else 404, b"")

    do_HEAD = do_POST = do_GET

    def _api(self, kind: str, name: str, verb: str, revision: str, path: str, body: bytes) -> None:
        files = self.hub.files(kind, name)
        if files is None:
            return self._reply(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        entries = [
            {"type": "file", "path": file, "size": len(content), "oid": sha1(content).hexdigest()}
            for file, content in files.items()
        ]
        if verb == "tree":
            return self._json([e for e in entries if not path or str(e["path"]).startswith(path + "/")])
        if verb == "paths-info":
            return self._json([e for e in entries if str(e["path"]) in body.decode()])
        info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files], "tags": []}
        return self._json({**info, "private": False, "gated": "auto" if name in self.hub.gated else False})

    def _resolve(self, kind: str, name: str, path: str) -> None:
        if name in self.hub.gated:
            return self._reply(401, b"Access is restricted.", {"X-Error-Code": "GatedRepo"})
        content = (self.hub.files(kind, name) or {}).get(path)
        if content is None:
            return self._reply(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2] or len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content)) - 1}/{len(content)}"
            return self._reply(206, content[start:end], headers)
        return self._reply(200, content, headers)

    def _json(self, content: Any) -> None:
        self._reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Log nothing."""
