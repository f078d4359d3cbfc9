"""A run, as the program that carries it out sees it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal

import httpx

from .errors import Fenced, RejoinError, RunOver, Stopped, Undelivered
from .outbox import Outbox
from .sender import Sender

logger = logging.getLogger("rejoin")

Role = Literal["user", "agent", "system"]
Stream = Literal["stdout", "stderr"]
OnStop = Literal["raise", "ignore"]

#: The most text of one piece of output.
OUTPUT_PIECE = 16 * 1024


class Run:
    """A run that this program carries out. Enter it, say what happens, leave it.

    Leaving the block without an exception ends the run as ``succeeded``, with one as ``failed``; a stop that was asked
    for, or Ctrl-C, as ``cancelled``. The exception goes on. Any thread may say something.
    """

    def __init__(
        self,
        http: httpx.Client,
        begin: Callable[[str], Mapping[str, Any]],
        *,
        buffer_bytes: int,
        close_timeout: float,
        on_stop: OnStop,
        release: Callable[[], None] | None = None,
    ) -> None:
        self._http = http
        self._begin = begin
        #: How this program calls itself towards the server, for this run.
        self._producer = str(uuid.uuid4())
        self._buffer_bytes = buffer_bytes
        self._close_timeout = close_timeout
        self._on_stop = on_stop
        self._release = release
        self._object: Mapping[str, Any] = {}
        self._outbox: Outbox | None = None
        self._sender: Sender | None = None
        self._end: dict[str, Any] | None = None
        self._attention: str | None = None
        self._state = "queued"

    # What it is.

    @property
    def id(self) -> str:
        """Its id."""
        return str(self._object.get("id", ""))

    @property
    def task(self) -> str:
        """The task it is of."""
        return str(self._object.get("task", ""))

    @property
    def params(self) -> dict[str, Any]:
        """What it was given."""
        return dict(self._object.get("params") or {})

    @property
    def attempt(self) -> int:
        """Which attempt of its slot it is, from 1."""
        return int(self._object.get("attempt", 1))

    @property
    def scheduled_for(self) -> str | None:
        """The time it was due, unless someone started it by hand."""
        return self._object.get("scheduled_for")

    @property
    def state(self) -> str:
        """Where it is: ``queued``, ``running``, or how this program ended it."""
        return self._state

    @property
    def stop_requested(self) -> str | None:
        """Why it is to stop, ``asked`` or ``timed_out``; none as long as nobody wants that."""
        return self._sender.why_stop if self._sender is not None else None

    # What it says.

    def thought(self, text: str) -> None:
        """What the program thinks before it acts."""
        self.event("thought", {"text": text})

    def message(self, text: str, role: Role = "agent") -> None:
        """Something said by or to the program."""
        self.event("message", {"role": role, "text": text})

    def progress(self, text: str, **more: Any) -> None:
        """Where the run is, in one line."""
        self.event("status", {"state": "progress", "text": text, **more})

    def tool_use(self, tool: str, input: object = None, *, call: str | None = None) -> str:
        """A tool is about to be used. Gives the id that its output and result go with."""
        call = call or uuid.uuid4().hex[:12]
        self.event("tool_use", {"call": call, "tool": tool, "input": {} if input is None else input})
        return call

    def tool_output(self, call: str, text: str, stream: Stream = "stdout") -> None:
        """A part of what a tool puts out while it works."""
        for start in range(0, len(text), OUTPUT_PIECE):
            piece = text[start : start + OUTPUT_PIECE]
            self.event("tool_output", {"call": call, "stream": stream, "text": piece})

    def tool_result(
        self,
        call: str,
        tool: str,
        *,
        ok: bool = True,
        output: str = "",
        exit: int | None = None,
        duration_ms: int | None = None,
    ) -> None:
        """A tool is done."""
        self.event("tool_result", _result(call, tool, ok, output, exit, duration_ms))

    def tool(self, tool: str, input: object = None) -> Call:
        """Uses a tool: ``with run.tool("shell", {"command": "df"}) as call``. Its result is said at the end."""
        return Call(self, tool, input)

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Anything else: a kind that is not known is shown as it is."""
        self._put(kind, data, check=True)

    def attention(self, summary: str) -> None:
        """Marks the run: something that a person should look at, in one line."""
        self._attention = summary

    def succeed(self, text: str = "", **more: Any) -> None:
        """How the run is to end when the block is left: well, with these words."""
        self._end = {"state": "succeeded", "text": text, **more}

    def fail(self, reason: str, *, exit: int | None = None, **more: Any) -> None:
        """How the run is to end when the block is left: with this error, though without an exception."""
        self._end = {"state": "failed", "reason": reason, **more}
        if exit is not None:
            self._end["exit"] = exit

    def flush(self, timeout: float = 30.0) -> bool:
        """Waits until all that was said is saved; false after ``timeout``."""
        outbox, _ = self._open()
        return outbox.wait_saved(timeout)

    def check(self) -> None:
        """Raises :class:`Stopped` once the run was asked to stop, as saying something does."""
        outbox, _ = self._open()
        if outbox.error is not None:
            raise outbox.error
        self._raise_if_stopped()

    @property
    def would_wait(self) -> bool:
        """Whether what is said next has to wait for room in the buffer."""
        return self._outbox is not None and self._outbox.would_wait

    # Its life.

    def __enter__(self) -> Run:
        if self._outbox is not None:
            raise RejoinError("a run is entered once")
        try:
            self._object = self._begin(self._producer)
        except BaseException:
            self._let_go()
            raise
        self._outbox = Outbox(self._buffer_bytes, int(self._object.get("last_n") or 0))
        self._sender = Sender(self._http, self.id, self._outbox, self._producer)
        self._state = "running"
        self._sender.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        outbox, sender = self._open()
        try:
            end = _ended_by(error) if error is not None else None
            if isinstance(error, (RunOver, Fenced)) and error is outbox.error:
                return
            end = end or self._end or {"state": "succeeded"}
            if self._attention is not None:
                end.setdefault("attention", {"summary": self._attention})
            try:
                self._put("status", end, check=False, final=True)
                if not outbox.wait_saved(self._close_timeout):
                    raise Undelivered(
                        f"{outbox.said - outbox.saved} events of run {self.id}, its end among them, did not arrive "
                        f"within {self._close_timeout:g} s"
                    )
                self._state = str(end["state"])
            except RejoinError as failure:
                if error is None:
                    raise
                # What went wrong in the block matters more.
                logger.warning("run %s: %s", self.id, failure)
        finally:
            sender.close()
            self._let_go()

    def _let_go(self) -> None:
        if self._release is not None:
            self._release()

    def _open(self) -> tuple[Outbox, Sender]:
        if self._outbox is None or self._sender is None:
            raise RejoinError("enter the run first: with ... as run")
        return self._outbox, self._sender

    def _put(self, kind: str, data: dict[str, Any], *, check: bool, final: bool = False) -> None:
        outbox, _ = self._open()
        outbox.put(kind, data, final=final, check=self._raise_if_stopped if check else None)

    def _raise_if_stopped(self) -> None:
        why = self.stop_requested
        if why is not None and self._on_stop == "raise":
            raise Stopped(why)


class Call:
    """The use of a tool. Leaving the block says its result: well, or with the exception that ended it."""

    def __init__(self, run: Run, tool: str, input: object) -> None:
        self._run = run
        self._tool = tool
        self._input = input
        self._lock = threading.Lock()
        self._result: dict[str, Any] | None = None
        self._begun = 0.0
        #: The id that its output and result go with.
        self.id = ""

    def __enter__(self) -> Call:
        self.id = self._run.tool_use(self._tool, self._input)
        self._begun = time.monotonic()
        return self

    def output(self, text: str, stream: Stream = "stdout") -> None:
        """A part of what the tool puts out while it works."""
        self._run.tool_output(self.id, text, stream)

    def result(self, output: object = "", *, ok: bool = True, exit: int | None = None) -> None:
        """What the tool gave."""
        with self._lock:
            self._result = {"output": output if isinstance(output, str) else str(output), "ok": ok, "exit": exit}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, (RunOver, Fenced)):
            return
        result = self._result or {"output": "", "ok": True, "exit": None}
        if error is not None:
            result = {"output": _words(error), "ok": False, "exit": None}
        took = int((time.monotonic() - self._begun) * 1000)
        data = _result(self.id, self._tool, result["ok"], result["output"], result["exit"], took)
        try:
            self._run._put("tool_result", data, check=False)
        except RejoinError:
            if error is None:
                raise


def _result(call: str, tool: str, ok: bool, output: str, exit: int | None, duration_ms: int | None) -> dict[str, Any]:
    data: dict[str, Any] = {"call": call, "tool": tool, "ok": ok, "output": output}
    if exit is not None:
        data["exit"] = exit
    if duration_ms is not None:
        data["duration_ms"] = duration_ms
    return data


def _ended_by(error: BaseException) -> dict[str, Any] | None:
    """How a run ends that was left by an exception; as told before where it is a regular exit."""
    if isinstance(error, Stopped):
        return {"state": "cancelled", "reason": "stopped on request" if error.why == "asked" else "took too long"}
    if isinstance(error, KeyboardInterrupt):
        return {"state": "cancelled", "reason": "interrupted by Ctrl-C"}
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        return {"state": "cancelled", "reason": "the program called it off"}
    if isinstance(error, SystemExit):
        if error.code is None or error.code == 0:
            return None
        code = error.code if isinstance(error.code, int) else 1
        return {"state": "failed", "reason": f"the program ended: {error.code}", "exit": code}
    return {"state": "failed", "reason": _words(error)}


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:1000] if text else type(error).__name__
