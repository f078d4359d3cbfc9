"""A real server for each test that asks for one, and a proxy that can cut its connections."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import rejoin

#: How long anything may take that is not itself about time.
PATIENCE = 30.0
REJOIN = os.environ.get("REJOIN_BIN", str(Path(__file__).parents[3] / "target" / "debug" / "rejoin"))


class Server:
    """The program, with fresh data. It may be killed and started again, and keeps its address."""

    def __init__(self, home: Path, config: str) -> None:
        self.home = home
        (home / "tasks").mkdir()
        self.task("elsewhere")
        (home / "config.toml").write_text(f'data_dir = "data"\ntasks_dir = "tasks"\n{config}\n')
        self.address = "127.0.0.1:0"
        self.start()
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=PATIENCE,
            trust_env=False,
        )

    def task(self, name: str, more: str = "") -> None:
        (self.home / "tasks" / f"{name}.toml").write_text(f'title = "{name}"\nagent = "external"\n{more}')

    def start(self) -> None:
        with (self.home / "log").open("a") as log:
            self.process = subprocess.Popen(
                [REJOIN, "serve", "--config", str(self.home / "config.toml"), "--listen", self.address],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http://" in line, (self.home / "log").read_text()
        self.address = line.split("http://")[1].split(";")[0].strip()

    def kill(self) -> None:
        self.process.kill()
        self._gone()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self._gone()

    def _gone(self) -> None:
        self.process.wait(PATIENCE)
        if self.process.stdout is not None:
            self.process.stdout.close()

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def token(self) -> str:
        return (self.home / "data" / "token").read_text().strip()

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "REJOIN_SERVER": self.url, "REJOIN_TOKEN": self.token}

    def client(self, url: str | None = None, **options: Any) -> rejoin.Client:
        return rejoin.Client(url or self.url, self.token, **options)

    def get(self, path: str) -> Any:
        response = self.http.get(path)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: object = None) -> Any:
        response = self.http.post(path, json=body or {})
        response.raise_for_status()
        return response.json()

    def events(self, task: str = "elsewhere") -> list[dict[str, Any]]:
        """All events of a task, in their order."""
        events: list[dict[str, Any]] = []
        query: dict[str, Any] = {"after": 0}
        while True:
            page = self.get(f"/tasks/{task}/events?" + "&".join(f"{key}={value}" for key, value in query.items()))
            events += page["items"]
            query = {"gen": page["gen"], "after": page["next"]}
            if not page["more"]:
                assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
                return events

    def said(self, kind: str, member: str = "text") -> list[Any]:
        """What the events of a kind say, in their order."""
        return [event["data"].get(member) for event in self.events() if event["kind"] == kind]

    def last_run(self) -> dict[str, Any]:
        run: dict[str, Any] = self.get("/tasks/elsewhere/runs")["items"][0]
        return run

    def until(self, path: str, good: Callable[[Any], bool]) -> Any:
        """Asks again until the answer is as wanted."""
        return until(lambda: self.get(path), good)


def until(ask: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = ask()
        if good(answer):
            return answer
        assert time.monotonic() < deadline, f"never came about: {answer}"
        time.sleep(0.01)


class Proxy:
    """Stands before a server. Cuts what it carries when told to, or after so many bytes."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._to = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.cut_after: int | None = None
        self.cuts = 0
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cuts everything that is open."""
        with self._lock:
            open_now, self._open = self._open, set()
        for side in open_now:
            _shut(side)

    def close(self) -> None:
        _shut(self._listener)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
            except OSError:
                if self._listener.fileno() < 0:
                    return
                near.close()
                continue
            self.connections += 1
            with self._lock:
                self._open |= {near, far}
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(*pair, pair[0] is near), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        carried = 0
        try:
            while data := source.recv(16 * 1024):
                carried += len(data)
                if counts and self.cut_after is not None and carried > self.cut_after:
                    # In the middle of a line, most often.
                    target.sendall(data[: len(data) // 2])
                    self.cuts += 1
                    break
                target.sendall(data)
        except OSError:
            pass
        for side in (source, target):
            _shut(side)


def _shut(side: socket.socket) -> None:
    with contextlib.suppress(OSError):
        side.shutdown(socket.SHUT_RDWR)
    side.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test."""
    servers: list[Server] = []
    umask = os.umask(0o022)

    def start(config: str = "") -> Server:
        home = tmp_path / f"home-{len(servers)}"
        home.mkdir()
        servers.append(Server(home, config))
        return servers[-1]

    yield start
    os.umask(umask)
    for server in servers:
        server.http.close()
        server.kill()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.address)
    yield proxy
    proxy.close()
