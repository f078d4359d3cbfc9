"""The same for ``async`` programs: what may wait is awaited, and the event loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any

from .client import MAX_WAIT, Client
from .run import Role, Run, Stream


class AsyncClient:
    """As :class:`Client`."""

    def __init__(self, server: str | None = None, token: str | None = None, **options: Any) -> None:
        self._client = Client(server, token, **options)

    def run(self, task: str, params: Mapping[str, Any] | None = None) -> AsyncRun:
        """A new run of the task: ``async with client.run("nightly") as run``."""
        return AsyncRun(self._client.run(task, params))

    async def claim(self, task: str, wait: float = 30.0) -> AsyncRun | None:
        """A run of the task that waits for someone to carry it out; none where there is none in time."""
        run = await asyncio.to_thread(self._client.claim, task, wait)
        return AsyncRun(run) if run is not None else None

    async def claims(self, task: str) -> AsyncIterator[AsyncRun]:
        """The runs of a task, one after the other, as they come."""
        while True:
            run = await self.claim(task, wait=MAX_WAIT)
            if run is not None:
                yield run

    def attach(self, run: str) -> AsyncRun:
        """A run that another program carried out so far."""
        return AsyncRun(self._client.attach(run))

    async def aclose(self) -> None:
        """Closes the connections."""
        await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


async def _say(run: Run, say: Callable[[], None]) -> None:
    """Says something at once where there is room for it, as there nearly always is; else on a thread that may wait."""
    if run.would_wait:
        await asyncio.to_thread(say)
    else:
        say()


class AsyncRun:
    """As :class:`Run`."""

    def __init__(self, run: Run) -> None:
        #: The run itself: its id, task, params, state.
        self.run = run

    async def thought(self, text: str) -> None:
        """What the program thinks before it acts."""
        await _say(self.run, lambda: self.run.thought(text))

    async def message(self, text: str, role: Role = "agent") -> None:
        """Something said by or to the program."""
        await _say(self.run, lambda: self.run.message(text, role))

    async def progress(self, text: str, **more: Any) -> None:
        """Where the run is, in one line."""
        await _say(self.run, lambda: self.run.progress(text, **more))

    async def event(self, kind: str, data: dict[str, Any]) -> None:
        """Anything else."""
        await _say(self.run, lambda: self.run.event(kind, data))

    def tool(self, tool: str, input: object = None) -> AsyncCall:
        """Uses a tool: ``async with run.tool("shell", {...}) as call``."""
        return AsyncCall(self.run, tool, input)

    def attention(self, summary: str) -> None:
        """Something that a person should look at, in one line."""
        self.run.attention(summary)

    def succeed(self, text: str = "", **more: Any) -> None:
        """How the run is to end: well, with these words."""
        self.run.succeed(text, **more)

    def fail(self, reason: str, *, exit: int | None = None, **more: Any) -> None:
        """How the run is to end: with this error."""
        self.run.fail(reason, exit=exit, **more)

    @property
    def stop_requested(self) -> str | None:
        """Why it is to stop; none as long as nobody wants that."""
        return self.run.stop_requested

    async def flush(self, timeout: float = 30.0) -> bool:
        """Waits until all that was said is saved."""
        return await asyncio.to_thread(self.run.flush, timeout)

    async def __aenter__(self) -> AsyncRun:
        entering = asyncio.ensure_future(asyncio.to_thread(self.run.__enter__))
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError as error:
            # Called off in this moment: the run is begun all the same, so its end is said.
            await asyncio.wait([entering])
            if not entering.cancelled() and entering.exception() is None:
                await asyncio.to_thread(self.run.__exit__, type(error), error, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Shielded: who is called off still says so.
        await asyncio.shield(asyncio.to_thread(self.run.__exit__, kind, error, trace))


class AsyncCall:
    """As :class:`Call`."""

    def __init__(self, run: Run, tool: str, input: object) -> None:
        self._run = run
        self._call = run.tool(tool, input)

    @property
    def id(self) -> str:
        """The id that its output and result go with."""
        return self._call.id

    async def output(self, text: str, stream: Stream = "stdout") -> None:
        """A part of what the tool puts out while it works."""
        await _say(self._run, lambda: self._call.output(text, stream))

    def result(self, output: object = "", *, ok: bool = True, exit: int | None = None) -> None:
        """What the tool gave."""
        self._call.result(output, ok=ok, exit=exit)

    async def __aenter__(self) -> AsyncCall:
        def begin() -> None:
            self._call.__enter__()

        await _say(self._run, begin)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await _say(self._run, lambda: self._call.__exit__(kind, error, trace))
