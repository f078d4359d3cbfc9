#!/usr/bin/env python3
"""Holds a second implementation of schedules to table.txt: Python's zoneinfo, minute by minute, and nothing of Rejoin.

It knows five fields with `*`, numbers, lists, ranges and steps, which is all that the table has.
"""

import datetime as dt
import sys
import zoneinfo
from pathlib import Path

MINUTE = dt.timedelta(minutes=1)
NAMES = {"@hourly": "0 * * * *", "@daily": "0 0 * * *"}


def values(field: str, least: int, most: int) -> set[int]:
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = (f"{least}-{most}" if span == "*" else span).partition("-")
        found.update(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


class Cron:
    def __init__(self, text: str) -> None:
        fields = NAMES.get(text, text).split()
        spans = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]
        self.minutes, self.hours, self.days, self.months, weekdays = (
            values(field, *span) for field, span in zip(fields, spans, strict=True)
        )
        self.weekdays = {day % 7 for day in weekdays}
        self.every_hour = fields[1].startswith("*") or len(self.hours) == 24

    def fits(self, wall: dt.datetime) -> bool:
        return (
            wall.minute in self.minutes
            and wall.hour in self.hours
            and wall.day in self.days
            and wall.month in self.months
            and wall.isoweekday() % 7 in self.weekdays
        )


def utc(wall: dt.datetime, zone: zoneinfo.ZoneInfo, fold: int) -> dt.datetime:
    return wall.replace(tzinfo=zone, fold=fold).astimezone(dt.UTC)


def passings(wall: dt.datetime, zone: zoneinfo.ZoneInfo) -> list[dt.datetime]:
    """The moments at which a wall clock shows this: none in a gap, two where it goes back."""
    moments = {utc(wall, zone, fold) for fold in (0, 1)}
    return sorted(at for at in moments if at.astimezone(zone).replace(tzinfo=None) == wall)


def end_of_gap(wall: dt.datetime, zone: zoneinfo.ZoneInfo) -> dt.datetime:
    at = utc(wall, zone, 1) - dt.timedelta(hours=3)
    before = at.astimezone(zone).utcoffset()
    while at.astimezone(zone).utcoffset() == before:
        at += MINUTE
    return at


def moments_of_cron(cron: Cron, zone: zoneinfo.ZoneInfo, after: dt.datetime, count: int) -> list[tuple[dt.datetime, str]]:
    found: dict[dt.datetime, str] = {}
    if cron.every_hour:
        at = after.astimezone(dt.UTC)
        while len(found) < count:
            at += MINUTE
            wall = at.astimezone(zone).replace(tzinfo=None)
            if cron.fits(wall):
                both = passings(wall, zone)
                note = ("first passing", "second passing")[both.index(at)] if len(both) > 1 else ""
                found[at] = note and f"clock goes back: {note}"
        return list(found.items())
    wall = after.astimezone(zone).replace(tzinfo=None) - dt.timedelta(hours=3)
    while len(found) < count:
        wall += MINUTE
        if not cron.fits(wall):
            continue
        both = passings(wall, zone)
        at = both[0] if both else end_of_gap(wall, zone)
        note = "clock goes back: first passing" if len(both) > 1 else ""
        note = note if both else f"clock goes forward: moved from {wall:%H:%M}"
        if at > after:
            found.setdefault(at, note)
    return list(found.items())


def moments(schedule: str, zone: zoneinfo.ZoneInfo, after: dt.datetime, count: int) -> list[tuple[dt.datetime, str]] | str:
    kind, _, rest = schedule.partition(" ")
    if kind == "every":
        period = dt.timedelta(hours=int(rest.removesuffix("h")))
        return [(after + period * k, "") for k in range(1, count + 1)]
    if kind == "at":
        time = dt.datetime.fromisoformat(rest)
        if time.tzinfo is not None:
            return [(time, "")]
        both = passings(time, zone)
        if len(both) == 1:
            return [(both[0], "")]
        return "refused: comes twice" if both else "refused: does not exist"
    return moments_of_cron(Cron(schedule), zone, after, count)


def shown(at: dt.datetime, note: str, zone: zoneinfo.ZoneInfo) -> str:
    text = at.astimezone(zone).isoformat(sep=" ", timespec="seconds")
    return f"{text} ({note})" if note else text


def rows(text: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("    "):
            found[-1][1].append(line.strip())
        elif line and not line.startswith("#"):
            found.append((line, []))
    return found


def main() -> int:
    wrong = 0
    table = rows((Path(__file__).parent / "table.txt").read_text())
    for head, expected in table:
        name, schedule, after = head.split(" | ")
        zone = zoneinfo.ZoneInfo(name)
        found = moments(schedule, zone, dt.datetime.fromisoformat(after), len(expected))
        lines = [found] if isinstance(found, str) else [shown(at, note, zone) for at, note in found]
        if lines != expected:
            wrong += 1
            print(f"{head}\n  the table says {expected}\n  zoneinfo says  {lines}", file=sys.stderr)
    print(f"{len(table) - wrong} of {len(table)} rows of the table are as Python's zoneinfo has them.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
