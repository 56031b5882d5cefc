"""A small ModelScope on 127.0.0.1 for its own client: each repository is a folder; all other names are unknown."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.fake_hub import serve_locally


@dataclass
class FakeModelScope:
    """A hub. `models` and `datasets`: repository name -> folder. `asked`: paths of all requests. `address`: its URL."""

    models: dict[str, Path] = field(default_factory=dict)
    datasets: dict[str, Path] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    @contextmanager
    def serve(self) -> Iterator["FakeModelScope"]:
        """Serve the hub on a free port inside the context."""
        with serve_locally(type("BoundHandler", (Handler,), {"hub": self})) as self.address:
            yield self


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of modelscope: the list of the files of a repository, and each file."""

    hub: FakeModelScope
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.asked.append(url.path)
        kind, owner, name, *verb = [*url.path.removeprefix("/api/v1/").split("/"), "", "", ""][:5]
        folder = {"models": self.hub.models, "datasets": self.hub.datasets}.get(kind, {}).get(f"{owner}/{name}")
        if url.path == "/":
            return self._reply(200, b"")
        if folder is None or verb[0] != "repo":
            return self._json(404, {"Code": 10010205001, "Message": "not found", "Success": False})
        if verb[1] in ("files", "tree"):
            files = [self._entry(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
            return self._json(200, {"Code": 200, "Data": {"Files": files, "TotalCount": len(files)}, "Success": True})
        return self._reply(200, (folder / parse_qs(url.query)["FilePath"][0]).read_bytes())

    do_HEAD = do_GET

    def _entry(self, path: Path, folder: Path) -> dict[str, Any]:
        content, name = path.read_bytes(), path.relative_to(folder).as_posix()
        return {"Name": path.name, "Path": name, "Type": "blob", "Size": len(content), "Revision": "master",
                "Sha256": sha256(content).hexdigest(), "IsLFS": False, "InCheck": False}  # fmt: skip

    def _json(self, status: int, content: Any) -> None:
        self._reply(status, json.dumps(content).encode(), "application/json")

    def _reply(self, status: int, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Log nothing."""
