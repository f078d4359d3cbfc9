"""The outbox: what was said and is not yet known to be saved, in order, within bounds.

Nothing here touches the network. Lines are numbered when they are put in, handed out to be sent, and kept until the
server says that it has saved them; after a cut they are handed out again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from . import lines

#: How much is handed out at once.
BATCH_BYTES = 64 * 1024


class Outbox:
    """Lines on their way. Any thread may put lines in; one hands them out."""

    def __init__(self, max_bytes: int, last_n: int = 0) -> None:
        if max_bytes <= 0:
            raise ValueError("the buffer needs room for at least one line")
        self._changed = threading.Condition()
        self._max_bytes = max_bytes
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        #: How many of the kept lines were handed out since the last :meth:`rewind`, and their bytes.
        self._handed = 0
        self._handed_bytes = 0
        #: The number of the next line.
        self._next = last_n + 1
        #: The last number that the server has saved.
        self._saved = last_n
        #: A line that the server refuses stands for nothing.
        self._gap: int | None = None
        self._final: int | None = None
        #: Someone waits until this number is saved.
        self._asked = 0
        self._is_sending = False
        self._error: Exception | None = None

    def put(
        self,
        kind: str,
        data: dict[str, Any],
        *,
        final: bool = False,
        timeout: float = 30.0,
        check: Callable[[], None] | None = None,
    ) -> int:
        """Takes a line and gives its number. Where there is no room it waits while lines are being taken by the
        server; where they are not, the oldest is given up, and the loss is said in its place."""
        at = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                if self._error is not None:
                    raise self._error
                if check is not None:
                    check()
                if self._final is not None:
                    raise RuntimeError("the run has said its end: nothing follows it")
                if self._kept_bytes < self._max_bytes:
                    break
                left = deadline - time.monotonic()
                if not self._is_sending or left <= 0:
                    self._give_up_oldest()
                else:
                    self._changed.wait(min(left, 1.0))
            n = self._next
            line = lines.event(n, kind, data, at)
            while self._kept and self._kept_bytes + len(line) > self._max_bytes and not self._is_sending:
                self._give_up_oldest()
            self._next += 1
            self._kept.append((n, line))
            self._kept_bytes += len(line)
            if final:
                self._final = n
            self._changed.notify_all()
            return n

    def take(self, timeout: float) -> bytes:
        """The next lines to send: as many as there are, up to a bound; none after ``timeout``."""
        with self._changed:
            if self._error is None and not self._pending() and self._asked <= self._saved:
                self._changed.wait(timeout)
            if self._error is not None:
                return b""
            batch: list[bytes] = []
            size = 0
            gap = self._gap
            if gap is not None:
                self._gap = None
                batch.append(lines.gap(gap))
            while self._handed < len(self._kept) and size < BATCH_BYTES:
                _, line = self._kept[self._handed]
                batch.append(line)
                size += len(line)
                self._handed += 1
            self._handed_bytes += size
            return b"".join(batch)

    def acknowledge(self, last_n: int) -> None:
        """The server has saved everything up to ``last_n``."""
        with self._changed:
            self._saved = max(self._saved, last_n)
            while self._kept and self._kept[0][0] <= last_n:
                self._drop_first()
            self._changed.notify_all()

    def rewind(self, last_n: int) -> None:
        """Begins to hand out again behind ``last_n``. Where lines are no longer there, their loss is said first."""
        self.acknowledge(last_n)
        with self._changed:
            self._handed = self._handed_bytes = 0
            first = self._kept[0][0] if self._kept else self._next
            self._gap = first - 1 if first - 1 > last_n else None
            self._changed.notify_all()

    def refuse(self, n: int) -> None:
        """The server does not take this line: its loss is said in its place."""
        with self._changed:
            if self._kept and self._kept[0][0] == n:
                self._drop_first()
                if self._final == n:
                    self._final = None

    def wait_saved(self, timeout: float) -> bool:
        """Waits until everything that was said is saved; false after ``timeout``."""
        deadline = time.monotonic() + timeout
        with self._changed:
            asked = self._next - 1
            self._asked = max(self._asked, asked)
            self._changed.notify_all()
            while self._saved < asked:
                if self._error is not None:
                    raise self._error
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def fail(self, error: Exception) -> None:
        """Nothing is sent any more; whoever says something hears why."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def wake(self) -> None:
        """Wakes whoever waits."""
        with self._changed:
            self._changed.notify_all()

    @property
    def error(self) -> Exception | None:
        """Why nothing is sent any more."""
        return self._error

    @property
    def is_sending(self) -> bool:
        """Whether the server is taking lines."""
        return self._is_sending

    @is_sending.setter
    def is_sending(self, value: bool) -> None:
        with self._changed:
            self._is_sending = value
            self._changed.notify_all()

    @property
    def would_wait(self) -> bool:
        """Whether the next line has to wait for room."""
        return self._is_sending and self._kept_bytes >= self._max_bytes

    @property
    def saved(self) -> int:
        """The last number that the server has saved."""
        return self._saved

    @property
    def said(self) -> int:
        """The last number that was given."""
        return self._next - 1

    @property
    def is_done(self) -> bool:
        """Whether the end of the run is saved."""
        return self._final is not None and self._saved >= self._final

    @property
    def has_handed_out_all(self) -> bool:
        """Whether the end of the run was handed out: nothing follows."""
        with self._changed:
            return self._final is not None and not self._pending()

    @property
    def wants_answer(self) -> bool:
        """Whether it should be known what is saved: much was sent, or someone asked and all was sent."""
        with self._changed:
            is_asked = self._asked > self._saved and not self._pending()
            return is_asked or self._handed_bytes * 2 > self._max_bytes

    def _pending(self) -> bool:
        return self._gap is not None or self._handed < len(self._kept)

    def _drop_first(self) -> None:
        _, line = self._kept.popleft()
        self._kept_bytes -= len(line)
        if self._handed:
            self._handed -= 1
            self._handed_bytes -= len(line)

    def _give_up_oldest(self) -> None:
        if self._handed == 0:
            # All before it was sent: its loss is said next.
            self._gap = self._kept[0][0]
        self._drop_first()
