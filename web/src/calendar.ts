// The days of a calendar, each with what is due in it. Pure.

import type { Calendar, CalendarItem } from './state/api';

export interface Day {
  /** 2026-03-28 */
  date: string;
  /** What is due all day long. */
  lines: CalendarItem[];
  /** What is due at this time. */
  times: { time: string; items: CalendarItem[] }[];
}

/** `2026-03-28T02:30:00+01:00` as the date and the time that stand on the wall there. */
export function wall(at: string): { date: string; time: string } {
  const time = at.slice(11, 19);
  return { date: at.slice(0, 10), time: time.endsWith(':00') ? time.slice(0, 5) : time };
}

function dayAfter(date: string): string {
  return new Date(Date.parse(`${date}T12:00:00Z`) + 86_400_000).toISOString().slice(0, 10);
}

/** Every day from the first to the last, also those in which nothing is due. */
export function daysOf(calendar: Calendar): Day[] {
  const days: Day[] = [];
  const last = wall(calendar.to).date;
  for (let date = wall(calendar.from).date; date <= last && days.length < 31; date = dayAfter(date)) {
    days.push({ date, lines: [], times: [] });
  }
  for (const item of calendar.items) {
    const { date, time } = wall(item.at ?? item.from ?? '');
    const day = days.find((one) => one.date === date);
    if (day === undefined) continue;
    if (item.at === undefined) day.lines.push(item);
    else if (day.times.at(-1)?.time === time) day.times.at(-1)!.items.push(item);
    else day.times.push({ time, items: [item] });
  }
  return days;
}
