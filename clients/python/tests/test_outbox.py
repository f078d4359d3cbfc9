"""The outbox alone: numbers, bounds, what is handed out again and what is said to be lost."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from rejoin.lines import MAX_LINE, event
from rejoin.outbox import Outbox


def numbers(batch: bytes) -> list[Any]:
    lines = [json.loads(line) for line in batch.splitlines()]
    return [("gap", line["n"]) if line.get("gap") else line["n"] for line in lines]


def filled(count: int, max_bytes: int = 1_000_000) -> Outbox:
    outbox = Outbox(max_bytes)
    for number in range(count):
        outbox.put("thought", {"text": f"thought {number}"})
    return outbox


def test_what_is_not_saved_is_handed_out_again_after_a_cut() -> None:
    outbox = filled(5)
    assert numbers(outbox.take(0)) == [1, 2, 3, 4, 5]
    assert numbers(outbox.take(0)) == []
    outbox.acknowledge(2)
    outbox.rewind(3)
    assert numbers(outbox.take(0)) == [4, 5]
    outbox.acknowledge(5)
    assert outbox.wait_saved(0)


def test_an_answer_that_comes_late_moves_nothing_back() -> None:
    outbox = filled(5)
    outbox.take(0)
    outbox.acknowledge(4)
    outbox.acknowledge(2)
    assert outbox.saved == 4
    outbox.rewind(4)
    assert numbers(outbox.take(0)) == [5]


def test_with_nobody_to_take_them_the_oldest_are_given_up_and_their_loss_is_said_first() -> None:
    outbox = filled(1000, max_bytes=2000)
    outbox.rewind(0)
    handed = numbers(outbox.take(0))
    assert handed[0] == ("gap", handed[1] - 1)
    assert handed[1:] == list(range(handed[1], 1001))


def test_a_loss_of_everything_is_said_too() -> None:
    outbox = filled(3)
    outbox.take(0)
    outbox.acknowledge(3)
    # The server came back without its last second.
    outbox.rewind(1)
    assert numbers(outbox.take(0)) == [("gap", 3)]


def test_a_line_that_is_given_up_while_others_are_on_their_way_leaves_no_hole_in_the_numbers() -> None:
    outbox = Outbox(1000)
    outbox.is_sending = True
    for _ in range(3):
        outbox.put("thought", {"text": "x" * 100})
    assert numbers(outbox.take(0)) == [1, 2, 3]
    while not outbox.would_wait:
        outbox.put("thought", {"text": "x" * 100})
    last = outbox.said
    # Nobody says what is saved: after its time the next one goes in all the same, the oldest goes.
    outbox.put("thought", {"text": "x" * 2000}, timeout=0)
    assert numbers(outbox.take(0)) == list(range(4, last + 2))


def test_who_waits_for_room_goes_on_when_lines_are_saved() -> None:
    outbox = Outbox(1000)
    outbox.is_sending = True
    while not outbox.would_wait:
        outbox.put("thought", {"text": "x" * 100})
    waiting = threading.Thread(target=outbox.put, args=("thought", {"text": "late"}))
    waiting.start()
    outbox.take(0)
    outbox.acknowledge(outbox.said)
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_line_that_is_refused_becomes_a_loss() -> None:
    outbox = filled(3)
    outbox.take(0)
    outbox.acknowledge(1)
    outbox.refuse(2)
    outbox.rewind(1)
    assert numbers(outbox.take(0)) == [("gap", 2), 3]


def test_nothing_follows_the_end() -> None:
    outbox = filled(1)
    outbox.put("status", {"state": "succeeded"}, final=True)
    with pytest.raises(RuntimeError):
        outbox.put("thought", {"text": "late"})
    assert not outbox.has_handed_out_all
    outbox.take(0)
    assert outbox.has_handed_out_all
    assert not outbox.is_done
    outbox.acknowledge(2)
    assert outbox.is_done


def test_a_line_is_never_longer_than_the_server_takes() -> None:
    for data in (
        {"text": "x" * 3_000_000},
        {"text": "\n" * 1_500_000},
        {"a": "é" * 900_000, "b": {"c": ["y" * 900_000, "short"]}},
        {"many": ["z" * 1000] * 2000},
    ):
        line = event(1, "thought", data, "2026-11-20T20:41:07.000000Z")
        assert len(line) <= MAX_LINE
        json.loads(line)
    with pytest.raises(ValueError, match="too large"):
        event(1, "thought", {"numbers": list(range(500_000))}, "2026-11-20T20:41:07.000000Z")
