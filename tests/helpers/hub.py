"""A small web server that speaks the part of the hub's protocol by which files are downloaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


@contextlib.contextmanager
def serve_hub(repositories: dict[str, Path], status: int = 0) -> Iterator[str]:
    """Serve folders as repositories with a branch `main`, and give the server's address, for HF_ENDPOINT.

    Args:
        repositories: name of the repository -> its folder. A name that begins with "gated/" may not be read.
        status: answer everything with this status instead.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            if status:
                return self.send(status, {}, b"")
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:  # revisions
                repository, revision, name = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main", None
            elif len(parts) > 4 and parts[2] == "resolve":
                repository, revision, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            else:
                return self.send(404, {}, b"")

            if repository.startswith("gated/"):
                return self.send(403, {"X-Error-Code": "GatedRepo"}, b"")
            folder = repositories.get(repository)
            if folder is None:
                return self.send(401, {"X-Error-Code": "RepoNotFound"}, b"")
            if revision not in ("main", COMMIT):
                return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            if name is None:
                return self.send(200, {}, json.dumps({"id": repository, "sha": COMMIT}).encode() if with_body else b"")
            if not (folder / name).is_file():
                return self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"")
            body = (folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
            return self.send(200, headers, body, with_body)

        def send(self, code: int, headers: dict[str, str], body: bytes, with_body: bool = True) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Give the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
