"""How the server is spoken to: where it is, who asks, and what its answers mean."""

from __future__ import annotations

import ipaddress
import os
import random
import threading
import time
import uuid
from typing import Any

import httpx

from .errors import RejoinError, ServerError

#: Where a server listens unless told otherwise.
DEFAULT_SERVER = "http://127.0.0.1:7171"
#: How long one call is tried again before its failure is told.
PATIENCE = 30.0


def open_http(server: str | None, token: str | None, transport: httpx.BaseTransport | None) -> httpx.Client:
    """A client of the server; both default to the environment, as for the ``rejoin`` command."""
    server = server or os.environ.get("REJOIN_SERVER") or DEFAULT_SERVER
    token = token or os.environ.get("REJOIN_TOKEN")
    if not token:
        raise RejoinError("no token: set REJOIN_TOKEN, or give token=... (the server keeps one in data/token)")
    url = httpx.URL(server)
    if url.scheme not in ("http", "https") or not url.host:
        raise RejoinError(f"{server!r} is no address of a server: it looks like {DEFAULT_SERVER}")
    local = _is_loopback(url.host)
    if url.scheme == "http" and not local:
        raise RejoinError(f"the token is not sent unencrypted to {url.host}: use https, or an SSH tunnel")
    return httpx.Client(
        base_url=f"{server.rstrip('/')}/api/v1",
        headers={"Authorization": f"Bearer {token}", "User-Agent": "rejoin-python"},
        timeout=httpx.Timeout(30.0, connect=10.0),
        limits=httpx.Limits(max_connections=None),
        # No proxy stands between this machine and itself.
        trust_env=not local,
        transport=transport,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Backoff:
    """How long to wait before the next try: at once first, then ever longer, with jitter so that not all come at
    the same moment."""

    def __init__(self, most: float = 15.0) -> None:
        self._most = most
        self._tries = 0

    def next(self) -> float:
        """Seconds to wait now."""
        bound = 0.2 if self._tries == 0 else min(self._most, 2.0 ** (self._tries - 1))
        self._tries += 1
        return random.uniform(0.0, bound)

    def reset(self) -> None:
        """It went well."""
        self._tries = 0


def problem(response: httpx.Response) -> dict[str, Any]:
    """What the server says is wrong."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def refusal(response: httpx.Response) -> ServerError:
    """The error of an answer that is one."""
    said = problem(response)
    return ServerError(
        response.status_code,
        str(said.get("code", "")),
        str(said.get("detail") or f"the server answered {response.status_code}"),
    )


def is_passing(status: int) -> bool:
    """Whether the same call may go well a little later."""
    return status in (408, 425, 429) or status >= 500


def call(
    http: httpx.Client,
    path: str,
    *,
    params: dict[str, Any] | None = None,
    json: object = None,
    headers: dict[str, str] | None = None,
    timeout: float = 30.0,
    patience: float = PATIENCE,
) -> httpx.Response:
    """A POST that acts once, however often it has to be sent."""
    headers = {"Idempotency-Key": str(uuid.uuid4()), **(headers or {})}
    deadline = time.monotonic() + patience
    backoff = Backoff(most=4.0)
    while True:
        failure: Exception
        try:
            response = http.post(path, params=params, json=json, headers=headers, timeout=timeout)
            if response.is_success:
                return response
            failure = refusal(response)
            if not is_passing(response.status_code):
                raise failure
        except httpx.TransportError as error:
            failure = RejoinError(f"no server answers at {http.base_url}: {error!r}")
        pause = backoff.next()
        if time.monotonic() + pause >= deadline:
            raise failure
        threading.Event().wait(pause)
