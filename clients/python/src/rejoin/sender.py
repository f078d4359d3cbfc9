"""The sender: carries lines from the outbox to the server over one streamed request, and comes back after every cut.

Two threads for each run. One streams; the other asks whether to stop, and is the first to notice that the server is
gone, as it always waits for an answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import httpx

from .connection import Backoff, is_passing, problem, refusal
from .errors import Fenced, RejoinError, RunOver
from .outbox import Outbox

logger = logging.getLogger("rejoin")

#: The header with the name of a program: one that another replaced is refused by it.
PRODUCER = "Rejoin-Producer"
#: A blank line is sent after so long without another: it shows that both are there.
KEEP_ALIVE = 5.0
#: How long the server may wait before it says that nobody has asked to stop.
STOP_WAIT = 20
#: How often the server may say that lines are missing without taking any, before that is an error.
MOST_GAPS = 5


class Sender:
    """Sends what is in the outbox until the end of the run is saved."""

    def __init__(self, http: httpx.Client, run: str, outbox: Outbox, producer: str) -> None:
        self._http = http
        self._run = run
        self._outbox = outbox
        self._named = {PRODUCER: producer}
        self._poked = threading.Event()
        self._closed = threading.Event()
        self._why: str | None = None
        self._gaps = 0
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._send,), name=f"rejoin-send-{run}", daemon=True),
            threading.Thread(target=self._guarded, args=(self._watch,), name=f"rejoin-watch-{run}", daemon=True),
        ]

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def poke(self) -> None:
        """Ends the request that is open, so that it is known what is saved; another follows."""
        self._poked.set()
        self._outbox.wake()

    def close(self) -> None:
        """Ends, whatever is still in the outbox."""
        self._closed.set()
        self.poke()
        for thread in self._threads:
            thread.join(1.0)

    @property
    def why_stop(self) -> str | None:
        """Why the run was asked to stop, if it was."""
        return self._why

    def _guarded(self, work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except RejoinError as error:
            self._outbox.fail(error)
        except Exception as error:
            if not self._closed.is_set():
                logger.exception("events of run %s can no longer be sent", self._run)
                self._outbox.fail(RejoinError(f"events can no longer be sent: {error!r}"))

    def _is_over(self) -> bool:
        return self._closed.is_set() or self._outbox.is_done or self._outbox.error is not None

    # The stream.

    def _send(self) -> None:
        backoff = Backoff()
        is_fine = True
        # The run has just begun: the server is there, and has nothing of it.
        self._outbox.is_sending = True
        fresh = True
        while not self._is_over():
            self._poked.clear()
            before = self._outbox.saved
            try:
                if not fresh:
                    is_fine = self._find_place()
                    if is_fine is False or self._is_over():
                        continue
                fresh = False
                self._outbox.is_sending = True
                timeout = httpx.Timeout(30.0, read=60.0)
                path = f"/runs/{self._run}/events"
                response = self._http.post(path, content=self._body(), headers=self._named, timeout=timeout)
                is_fine = self._heard(response)
            except httpx.TransportError as error:
                logger.debug("run %s: cut off: %r", self._run, error)
                is_fine = False
            finally:
                # While it is away nobody waits for it. Between two requests that went well it is there.
                self._outbox.is_sending = is_fine
                if is_fine or self._outbox.saved > before:
                    backoff.reset()
                if not is_fine and not self._is_over():
                    self._closed.wait(backoff.next())

    def _body(self) -> Iterator[bytes]:
        while True:
            batch = self._outbox.take(KEEP_ALIVE)
            if self._is_over():
                return
            # A server that is there reads a blank line as a sign of life; one that is gone is noticed by it.
            yield batch or b"\n"
            if self._outbox.has_handed_out_all or self._outbox.wants_answer or self._poked.is_set():
                return

    def _find_place(self) -> bool:
        """Asks how far the server has come; false where it is to be asked again a little later."""
        response = self._http.get(f"/runs/{self._run}/stop", params={"wait": 0}, headers=self._named)
        if response.is_success:
            last_n = self._noted(response)
            if last_n > self._outbox.said:
                raise Fenced("another program spoke for this run meanwhile")
            self._outbox.rewind(last_n)
            return True
        self._refused(response)
        return False

    def _heard(self, response: httpx.Response) -> bool:
        """What the answer to a streamed request means; false where it is to be tried again a little later."""
        if response.is_success:
            self._gaps = 0
            self._outbox.acknowledge(int(response.json()["last_n"]))
            return True
        said = problem(response)
        code, last_n = said.get("code"), said.get("last_n")
        if isinstance(last_n, int):
            self._outbox.acknowledge(last_n)
            self._gaps = 0 if said.get("accepted") else self._gaps
        if code == "gap":
            self._gaps += 1
            if self._gaps > MOST_GAPS:
                raise refusal(response)
            return True
        if code == "bad_line" and isinstance(last_n, int):
            logger.warning("run %s: an event was refused and left out: %s", self._run, said.get("detail"))
            self._outbox.refuse(last_n + 1)
            return True
        self._refused(response)
        return False

    def _refused(self, response: httpx.Response) -> None:
        """Raises where nothing is gained by trying again."""
        said = problem(response)
        if said.get("code") == "fenced":
            raise Fenced("another program speaks for this run since")
        if response.status_code == 409 and said.get("code") == "run_over":
            last_n = said.get("last_n")
            if isinstance(last_n, int):
                self._outbox.acknowledge(last_n)
            if not self._outbox.is_done:
                run = said.get("run") or {}
                raise RunOver(run.get("state"), run.get("reason"))
        elif response.status_code == 404:
            raise RunOver(None, "it is no longer there")
        elif not is_passing(response.status_code):
            raise refusal(response)

    # The watch.

    def _watch(self) -> None:
        backoff = Backoff()
        while not self._is_over():
            # Once it is known that the run is to stop, only its end is waited for.
            wait = STOP_WAIT if self._why is None else 0
            try:
                timeout = httpx.Timeout(30.0, read=STOP_WAIT + 30.0)
                path, asked = f"/runs/{self._run}/stop", {"wait": wait}
                response = self._http.get(path, params=asked, headers=self._named, timeout=timeout)
            except httpx.TransportError:
                # The server is gone: the stream may not have noticed yet.
                self.poke()
                self._closed.wait(backoff.next())
                continue
            if response.is_success:
                backoff.reset()
                self._outbox.acknowledge(self._noted(response))
                if self._why is not None:
                    self._closed.wait(1.0)
            else:
                self._refused(response)
                self.poke()
                self._closed.wait(backoff.next())

    def _noted(self, response: httpx.Response) -> int:
        said = response.json()
        if said["stop"] and self._why is None:
            self._why = str(said["why"])
            self._outbox.wake()
        return int(said["last_n"])
