"""The client: opens runs, and asks for those that wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, cast

import httpx

from .connection import PATIENCE, call, open_http, refusal
from .run import OnStop, Run
from .sender import PRODUCER

#: How much of what was said is kept until the server has saved it.
BUFFER_BYTES = 8 * 1024 * 1024
#: How long the end of a run may take to arrive.
CLOSE_TIMEOUT = 60.0
#: The longest that the server waits for a run to give.
MAX_WAIT = 60


class Client:
    """Speaks with one server. Without arguments it is the one of ``REJOIN_SERVER`` and ``REJOIN_TOKEN``.

    ``buffer_bytes`` bounds what is kept until the server has saved it. While the server takes lines, whoever says more
    than that waits; while it is away, the oldest is given up, and the loss is shown in the run.
    ``on_stop="ignore"`` leaves a stop that was asked for to :attr:`Run.stop_requested`, instead of raising
    :class:`Stopped` at the next thing that is said.
    """

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        *,
        buffer_bytes: int = BUFFER_BYTES,
        close_timeout: float = CLOSE_TIMEOUT,
        on_stop: OnStop = "raise",
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = open_http(server, token, transport)
        self._buffer_bytes = buffer_bytes
        self._close_timeout = close_timeout
        self._on_stop: OnStop = on_stop

    def run(self, task: str, params: Mapping[str, Any] | None = None) -> Run:
        """A new run of the task, carried out by this program: ``with client.run("nightly") as run``."""
        return self._run(lambda _: self._open(task, params))

    def claim(self, task: str, wait: float = 30.0) -> Run | None:
        """A run of the task that waits for someone to carry it out: of its schedule, or started on the page. None
        where there is none within ``wait`` seconds."""
        while True:
            part = int(min(max(wait, 0.0), MAX_WAIT))
            response = call(
                self._http, f"/tasks/{task}/claim", params={"wait": part}, timeout=part + 30.0, patience=PATIENCE
            )
            if response.status_code == 200:
                given = cast(Mapping[str, Any], response.json()["run"])
                return self._run(partial(_given, given))
            wait -= max(part, 1)
            if wait <= 0:
                return None

    def claims(self, task: str) -> Iterator[Run]:
        """The runs of a task, one after the other, as they come: ``for run in client.claims("nightly")``. Never ends
        by itself."""
        while True:
            run = self.claim(task, wait=MAX_WAIT)
            if run is not None:
                yield run

    def attach(self, run: str) -> Run:
        """A run that another program, or this one before it was started again, carried out so far. That one is
        fenced."""
        return self._run(lambda producer: self._find(run, producer))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, begin: Callable[[str], Mapping[str, Any]], release: Callable[[], None] | None = None) -> Run:
        return Run(
            self._http,
            begin,
            buffer_bytes=self._buffer_bytes,
            close_timeout=self._close_timeout,
            on_stop=self._on_stop,
            release=release,
        )

    def _open(self, task: str, params: Mapping[str, Any] | None) -> Mapping[str, Any]:
        response = call(self._http, f"/tasks/{task}/runs", json={"params": dict(params or {})})
        return cast(Mapping[str, Any], response.json()["run"])

    def _find(self, run: str, producer: str) -> Mapping[str, Any]:
        # A request without a line takes the turn: from here on nobody else's lines move the number on.
        turn = call(self._http, f"/runs/{run}/events", headers={PRODUCER: producer})
        response = self._http.get(f"/runs/{run}")
        if not response.is_success:
            raise refusal(response)
        return {**cast(Mapping[str, Any], response.json()), "last_n": turn.json()["last_n"]}


def _given(run: Mapping[str, Any], _: str) -> Mapping[str, Any]:
    return run


def run(task: str, params: Mapping[str, Any] | None = None, **options: Any) -> Run:
    """A new run of the task on the server of the environment: ``with rejoin.run("nightly") as run``. Options are
    those of :class:`Client`."""
    client = Client(**options)
    return client._run(lambda _: client._open(task, params), release=client.close)
