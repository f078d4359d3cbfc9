"""What can go wrong, and what is told to the program that carries out a run."""

from __future__ import annotations


class RejoinError(Exception):
    """Everything that this package raises."""


class ServerError(RejoinError):
    """The server refused a call; asking again does not help."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({status} {code})" if code else f"{detail} ({status})")
        self.status = status
        self.code = code
        self.detail = detail


class RunOver(RejoinError):
    """The run is over: someone else ended it, or the server took it away."""

    def __init__(self, state: str | None, reason: str | None) -> None:
        ended = f"the run is over: it ended as {state}" if state else "the run is over"
        super().__init__(f"{ended}: {reason}" if reason else ended)
        self.state = state
        self.reason = reason


class Fenced(RejoinError):
    """Another program speaks for the run since; nothing of this one is taken any more."""


class Stopped(RejoinError):
    """The run was asked to stop. Raised by the next thing it says; leave the block, and the run is cancelled."""

    def __init__(self, why: str) -> None:
        super().__init__("the run took too long" if why == "timed_out" else "the run was asked to stop")
        self.why = why


class Undelivered(RejoinError):
    """The server could not be reached in time: the last events, the end of the run among them, did not arrive."""
