"""Rejoin for Python: give an agent a page that people can walk away from and come back to.

```python
import rejoin

with rejoin.run("nightly-report") as run:
    run.thought("Which tables have grown?")
    with run.tool("query", {"sql": "select ..."}) as call:
        call.result("...")
```
"""

from .asynchronous import AsyncCall, AsyncClient, AsyncRun
from .client import Client, run
from .errors import Fenced, RejoinError, RunOver, ServerError, Stopped, Undelivered
from .run import Call, Run

__all__ = [
    "AsyncCall",
    "AsyncClient",
    "AsyncRun",
    "Call",
    "Client",
    "Fenced",
    "RejoinError",
    "Run",
    "RunOver",
    "ServerError",
    "Stopped",
    "Undelivered",
    "run",
]
