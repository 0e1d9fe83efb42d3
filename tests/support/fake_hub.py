"""The Hugging Face hub of one machine: an HTTP server that takes a push through the hub's own client."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class FakeHub:
    """What was pushed to it.

    Attributes:
        repositories: id -> whether it is private.
        files: (id, path) -> content.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, bool] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.url = ""

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """The hub's answer to a POST."""
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization') or 'me'}/{told['name']}"
            self.repositories[name] = told.get("visibility") == "private" or bool(told.get("private"))
            return {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        _, _, _, owner, name, verb, *_ = path.split("/")
        if verb == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            return {"files": modes}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.files[f"{owner}/{name}", value["path"]] = base64.b64decode(value["content"])
        return {"commitUrl": f"{self.url}/{owner}/{name}/commit/1", "commitOid": "1" * 40, "hookOutput": ""}


@contextmanager
def serving() -> Iterator[FakeHub]:
    """Within, it answers at its `url`."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self._answered(hub.answer(self.path.partition("?")[0], body))

        def do_GET(self) -> None:
            self._answered({"id": "me/mine", "sha": "0" * 40, "siblings": []})

        def _answered(self, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
