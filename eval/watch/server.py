"""A run's page, served to this machine alone by the standard library.

Whoever is to see it has to know the address with its key, which other users of the machine do not; a browser that was
led here from elsewhere is told apart by the names that it gives its host and its origin. What changes anything is a
POST that shows a token of the page besides.
"""

import secrets
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastgen.errors import UserError

from .files import RunFiles
from .page import POLICY, page
from .stop import stop

HOST = "127.0.0.1"
NAMES = {"127.0.0.1", "localhost"}
MOST_BYTES = 4096
"""Of what a request may send."""
PATIENCE_S = 20.0
"""In which a client has to send its request."""
SEALED: Mapping[str, str] = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Watcher(ThreadingHTTPServer):
    """Serves the page of one run.

    Attributes:
        asked: whether the run was asked to stop from here.

    Args:
        folder: of the run.
        port: 0 takes a free one.

    Raises:
        UserError: the folder holds no run, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        RunFiles.read(folder)
        self.folder, self.asked = folder, False
        self.key, self.token = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(
                f"port {port} of {HOST} cannot be listened on ({error.strerror}): give another with --port"
            ) from error

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/{self.key}/"


class _Handler(BaseHTTPRequestHandler):
    server: Watcher
    timeout = PATIENCE_S
    server_version, sys_version = "fastgen", ""

    def do_GET(self) -> None:
        what = self._asked_for()
        if what is None:
            return
        if what not in ("", "version"):
            return self._refuse(HTTPStatus.NOT_FOUND)
        try:
            run = RunFiles.read(self.server.folder)
        except UserError as error:  # the folder is gone
            return self._answer(str(error), kind="text/plain", status=HTTPStatus.GONE)
        if what == "version":
            self._answer(run.version, kind="text/plain")
        else:
            self._answer(self._page(run))

    def do_POST(self) -> None:
        what = self._asked_for()
        if what is None:
            return
        if what != "stop":
            return self._refuse(HTTPStatus.NOT_FOUND)
        if not self._ours() or not self._shows_token():
            return self._refuse(HTTPStatus.FORBIDDEN)
        try:
            run = RunFiles.read(self.server.folder)
            stop(run)
        except UserError as error:
            return self._answer(str(error), kind="text/plain", status=HTTPStatus.CONFLICT)
        self.server.asked = True
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "./")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _page(self, run: RunFiles) -> str:
        if run.holder is None:
            self.server.asked = False
        return page(run, token=self.server.token, asked=self.server.asked)

    def _asked_for(self) -> str | None:
        """The path behind the key; None of a request that is refused."""
        if not _is_here(f"//{self.headers.get('Host', '')}") or len(self.headers.get_all("Host", [])) != 1:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        key, slash, what = urlsplit(self.path).path.removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(key.encode(), self.server.key.encode()):
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return what

    def _ours(self) -> bool:
        """Whether it is our own page that sends this."""
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "same-origin")
        return origin == f"http://{self.headers['Host']}" and site == "same-origin"

    def _shows_token(self) -> bool:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return False
        sent = parse_qs(self.rfile.read(int(length)).decode("ascii", "replace")).get("token", [""])
        return len(sent) == 1 and secrets.compare_digest(sent[0].encode(), self.server.token.encode())

    def _answer(self, text: str, *, kind: str = "text/html", status: HTTPStatus = HTTPStatus.OK) -> None:
        body = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._answer(status.phrase, kind="text/plain", status=status)

    def end_headers(self) -> None:
        for name, value in SEALED.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Stays silent: single requests are not logged."""


def _is_here(address: str) -> bool:
    """Whether an address names this machine's own loopback."""
    try:
        parts = urlsplit(address)
        return parts.hostname in NAMES and parts.username is None and (parts.port or 1) > 0
    except ValueError:  # a port that is none
        return False
