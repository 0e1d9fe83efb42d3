"""The server of a run's page: this machine alone, whoever knows the key, and no other page's doing."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import psutil
import pytest
from made_up_run import hold, write_run

from eval.watch.server import MOST_BYTES, Watcher
from fastgen.errors import UserError

HOLDER = """
import sys, time
from pathlib import Path
from fastgen.lock import held
folder = Path(sys.argv[1])
with held({folder: folder / ".lock"}):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    with Watcher(write_run(tmp_path / "run"), 0) as watcher:
        Thread(target=watcher.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield watcher
        watcher.shutdown()


@pytest.fixture
def holder(watcher: Watcher) -> Iterator[subprocess.Popen]:
    """A process that holds the run's lock, and ends by SIGTERM."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(watcher.folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def ask(watcher: Watcher, path: str | None = None, *, method: str = "GET", body: str | None = None, **headers: str):
    """Status, headers and text of an answer; `path` is behind the key where it is not absolute."""
    connection = http.client.HTTPConnection("127.0.0.1", watcher.server_port, timeout=10)
    place = path if path and path.startswith("/") else f"/{watcher.key}/{path or ''}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, place, body=body, headers=named)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def own(watcher: Watcher) -> dict[str, str]:
    """What a browser says of a form of our own page."""
    return {"Origin": f"http://127.0.0.1:{watcher.server_port}", "Content_Type": "application/x-www-form-urlencoded"}


def test_pages_listen_on_this_machine_alone(watcher):
    assert watcher.server_address[0] == "127.0.0.1"
    here = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in here:
        with socket.socket() as other, pytest.raises(OSError, match="refused"):
            other.connect((address, watcher.server_port))
    status, headers, text = ask(watcher)
    assert status == 200
    assert "<main id=" in text
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("path", ["/", "/wrong/", "/stop", "//", "/../", "/%2e%2e/etc/passwd"])
def test_without_the_key_there_is_nothing(watcher, path):
    status, _, text = ask(watcher, path)
    assert (status, text) == (404, "Not Found")


@pytest.mark.parametrize("path", ["log.jsonl", "../config.yaml", "previews/teacher.png", "..%2f..%2fetc/passwd"])
def test_no_file_is_served(watcher, path):
    assert ask(watcher, path)[0] == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "a@127.0.0.1", "127.0.0.1:x", "", "0.0.0.0"]
)
def test_another_name_of_the_host_is_refused(watcher, host):
    assert ask(watcher, Host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1", "LOCALHOST:1"])
def test_a_tunnel_may_end_at_another_port(watcher, host):
    assert ask(watcher, Host=host)[0] == 200


def test_the_version_changes_with_the_log(watcher):
    before = ask(watcher, "version")[2]
    assert ask(watcher, "version")[2] == before
    with (watcher.folder / "log.jsonl").open("a") as log:
        log.write('{"stage": 1, "cycle": 21, "images": 840}\n')
    assert ask(watcher, "version")[2] != before


def test_the_button_asks_the_process_of_the_run_to_stop(watcher, holder):
    token = re.search(r'name="token" value="([^"]+)"', ask(watcher)[2])
    assert token is not None
    status, headers, _ = ask(watcher, "stop", method="POST", body=f"token={token[1]}", **own(watcher))
    assert (status, headers["Location"]) == (303, "./")
    assert holder.wait(timeout=10) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("changed", "token"),
    [
        ({"Origin": "http://evil.example"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "http://127.0.0.1:1"}, True),
        ({"Origin": None}, True),
        ({"Sec_Fetch_Site": "cross-site"}, True),
        ({"Sec_Fetch_Site": "same-site"}, True),
        ({}, False),
    ],
    ids=["foreign", "null", "port", "none", "cross-site", "same-site", "token"],
)
def test_no_other_page_stops_a_run(watcher, holder, changed, token):
    headers = {name: value for name, value in (own(watcher) | changed).items() if value is not None}
    body = f"token={watcher.token if token else 'guess'}"
    assert ask(watcher, "stop", method="POST", body=body, **headers)[0] == 403
    time.sleep(0.1)
    assert holder.poll() is None


def test_stopping_is_no_get_and_takes_no_long_body(watcher, holder):
    assert ask(watcher, "stop")[0] == 404
    body = f"token={watcher.token}&more={'x' * MOST_BYTES}"
    assert ask(watcher, "stop", method="POST", body=body, **own(watcher))[0] == 403
    assert holder.poll() is None


def test_a_process_that_does_not_hold_the_lock_is_left_alone(watcher, monkeypatch):
    killed = []
    monkeypatch.setattr(os, "kill", lambda *told: killed.append(told))

    def refused() -> str:
        status, _, text = ask(watcher, "stop", method="POST", body=f"token={watcher.token}", **own(watcher))
        assert (status, killed) == (409, [])
        return text

    hold(watcher.folder)
    assert "there is nothing to stop" in refused()
    hold(watcher.folder, host="elsewhere")
    assert "send it SIGTERM there" in refused()
    monkeypatch.setattr("psutil.Process.open_files", unseen)
    hold(watcher.folder)
    assert "is not known to write" in refused()


def unseen(process: psutil.Process) -> None:
    raise psutil.AccessDenied(process.pid)


def test_a_port_that_is_taken_and_a_folder_without_a_run_are_refused(watcher, tmp_path):
    with pytest.raises(UserError, match=r"cannot be listened on .*: give another with --port"):
        Watcher(watcher.folder, watcher.server_port)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not the folder of a run"):
        Watcher(tmp_path / "empty", 0)
