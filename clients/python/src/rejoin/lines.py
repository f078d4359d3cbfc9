"""Lines: what a program says, as the server takes it. Whatever the data is, the line is one that can be read."""

from __future__ import annotations

import json
import math
from typing import Any

#: The longest line that the server takes, in bytes.
MAX_LINE = 1024 * 1024
#: Where an event is too long, its strings are first cut to this many characters, then to half of it, and so on.
LONGEST_TEXT = 512 * 1024
#: A string is never cut below this.
SHORTEST_CUT = 256


def event(n: int, kind: str, data: dict[str, Any], at: str) -> bytes:
    """The line that says an event. What JSON does not know becomes text; what is too long is cut in the middle."""
    try:
        text = _json({"n": n, "kind": kind, "data": data, "at": at})
    except (ValueError, TypeError):
        # Not a number, a key that is no text, a circle: rare, so the whole is gone through only then.
        data = _plain(data, 0)
        text = _json({"n": n, "kind": kind, "data": data, "at": at})
    line = _encoded(text)
    if len(line) > MAX_LINE:
        data = _plain(data, 0)
        longest = LONGEST_TEXT
        while len(line) > MAX_LINE and longest >= SHORTEST_CUT:
            data = _cut(data, longest)
            longest //= 2
            line = _encoded(_json({"n": n, "kind": kind, "data": data, "at": at}))
        if len(line) > MAX_LINE:
            raise ValueError(f"an event of {len(line)} bytes is too large, at most {MAX_LINE} are taken")
    return line


def gap(n: int) -> bytes:
    """The line that stands for all that is no longer there, up to ``n``."""
    return b'{"n":%d,"gap":true}\n' % n


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=str)


def _encoded(text: str) -> bytes:
    # Half of a pair of surrogates is no text; file names have them.
    return text.encode("utf-8", "replace") + b"\n"


def _plain(value: Any, depth: int) -> Any:
    """A copy that JSON knows."""
    if depth > 90:
        return "..."
    if isinstance(value, dict):
        return {str(key): _plain(member, depth + 1) for key, member in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _cut(value: Any, longest: int) -> Any:
    """The same with the middle of each longer string cut out."""
    if isinstance(value, str):
        half = longest // 2
        return value if len(value) <= longest else f"{value[:half]}…{value[len(value) - half :]}"
    if isinstance(value, dict):
        return {key: _cut(member, longest) for key, member in value.items()}
    if isinstance(value, list):
        return [_cut(item, longest) for item in value]
    return value
