// From events to rows: groups by run, pairs a tool call with its output and result, and keeps the order of the log.
// Plain data and no framework, so that it can be tested alone and is fast at 200,000 events.

import { hasEnded, type Run, type TaskEvent } from '@rejoin/client';
import { foldRun } from '@rejoin/client/log';
import { Painter } from './ansi';

/** Output shown per call; the whole is behind a link. Bounds what one row costs, not what is kept. */
const MAX_PIECES = 400;
const MAX_TEXT = 128 * 1024;

export interface Piece {
  seq: number;
  stream: string;
  html: string;
  size: number;
  lines: number;
}

export interface RunRow {
  kind: 'run';
  key: string;
  run: Run;
  open: boolean;
  count: number;
}

export interface EventRow {
  kind: 'status' | 'end' | 'thought' | 'message' | 'raw';
  key: string;
  run: string | null;
  event: TaskEvent;
}

export interface ToolRow {
  kind: 'tool';
  key: string;
  run: string;
  call: string;
  use: TaskEvent | null;
  pieces: Piece[];
  /** Pieces that are no longer shown. */
  dropped: number;
  size: number;
  result: TaskEvent | null;
  /** Nothing more can come: the result is here, or the run has ended. */
  closed: boolean;
}

export type Row = RunRow | EventRow | ToolRow;

interface Group {
  /** The run's id, or null for an event of the task itself. */
  id: string | null;
  key: string;
  first: number;
  run: Run | null;
  events: TaskEvent[];
  rows: Row[];
  /** Index in `rows` by call. */
  calls: Map<string, number>;
  painters: Map<string, Painter>;
  /** null: nobody chose, so the rule decides. */
  open: boolean | null;
  /** Older than what a first look is about; shown when asked for. */
  early: boolean;
}

const TASK_STATES = new Set(['skipped', 'missed', 'paused', 'resumed']);

function isEnd(event: TaskEvent): boolean {
  const { state } = event.data;
  return event.kind === 'status' && typeof state === 'string' && hasEnded(state as Run['state']);
}

function rowKind(event: TaskEvent): EventRow['kind'] {
  const { kind, data } = event;
  if (kind === 'status' && typeof data.state === 'string') return isEnd(event) ? 'end' : 'status';
  if ((kind === 'thought' || kind === 'message') && typeof data.text === 'string') return kind;
  return 'raw';
}

export class Timeline {
  private groups: Group[] = [];
  private readonly byRun = new Map<string, Group>();
  private readonly known = new Map<string, Run>();
  private settled = false;
  /** Only this run's rows, or all. */
  only: string | null = null;
  /** Whether the runs before those of the first look are shown. */
  showEarly = false;
  /** How many runs that hides at present. */
  hidden = 0;

  clear(): void {
    this.groups = [];
    this.byRun.clear();
    this.known.clear();
    this.settled = false;
    this.showEarly = false;
    this.hidden = 0;
  }

  /** Runs as the server states them; they count until their own events say more. */
  learn(runs: readonly Run[]): void {
    for (const run of runs) {
      const held = this.known.get(run.id);
      if (held === undefined || (run.last_seq ?? 0) >= (held.last_seq ?? 0)) this.known.set(run.id, run);
      const group = this.byRun.get(run.id);
      if (group !== undefined) group.run = this.known.get(run.id) ?? group.run;
    }
  }

  /** Events after all known ones, in order. */
  append(items: readonly TaskEvent[]): void {
    for (const event of items) {
      const group = this.groupOf(event);
      const last = group.events[group.events.length - 1];
      if (last !== undefined && last.seq >= event.seq) {
        this.insert([event]);
        continue;
      }
      group.events.push(event);
      this.fold(group, event);
      this.addRow(group, event);
    }
  }

  /** Events from anywhere; those that are here already are left out. */
  insert(items: readonly TaskEvent[]): void {
    const touched = new Map<Group, TaskEvent[]>();
    for (const event of items) {
      const group = this.groupOf(event, false);
      const list = touched.get(group);
      if (list === undefined) touched.set(group, [event]);
      else list.push(event);
    }
    for (const [group, added] of touched) {
      const seqs = new Set(group.events.map((event) => event.seq));
      const fresh = added.filter((event) => !seqs.has(event.seq));
      if (fresh.length === 0) continue;
      group.events = [...group.events, ...fresh].sort((a, b) => a.seq - b.seq);
      group.first = group.events[0]!.seq;
      this.rebuild(group);
    }
    this.groups.sort((a, b) => a.first - b.first);
  }

  /** The first catch-up is over: what is open now stays open, and what begins from now on is shown. */
  settle(): void {
    if (this.settled) return;
    this.settled = true;
    const newest = this.newest();
    for (const group of this.groups) {
      if (group.open === null && this.isOpen(group, newest)) group.open = true;
    }
    // The first look is at the newest run, and at older ones that are still under way.
    const first = this.groups.find((group) => group.id !== null && group.open === true);
    for (const group of this.groups) group.early = first !== undefined && group.first < first.first;
  }

  toggle(run: string): void {
    const group = this.byRun.get(run);
    if (group !== undefined) group.open = !this.isOpen(group, this.newest());
  }

  run(id: string): Run | undefined {
    return this.known.get(id);
  }

  runs(): Run[] {
    return [...this.known.values()];
  }

  rows(): Row[] {
    const newest = this.newest();
    const rows: Row[] = [];
    this.hidden = 0;
    for (const group of this.groups) {
      if (this.only !== null && group.id !== this.only) continue;
      if (group.early && !this.showEarly && this.only === null) {
        if (group.id !== null) this.hidden += 1;
        continue;
      }
      if (group.id === null || group.run === null) {
        for (const row of group.rows) rows.push(row);
        continue;
      }
      const open = this.only !== null || this.isOpen(group, newest);
      rows.push({ kind: 'run', key: group.key, run: group.run, open, count: group.events.length });
      if (open) for (const row of group.rows) rows.push(row);
    }
    return rows;
  }

  get size(): number {
    let size = 0;
    for (const group of this.groups) size += group.events.length;
    return size;
  }

  private newest(): Group | undefined {
    for (let at = this.groups.length - 1; at >= 0; at -= 1) {
      const group = this.groups[at]!;
      if (group.id !== null) return group;
    }
    return undefined;
  }

  private isOpen(group: Group, newest: Group | undefined): boolean {
    return group.open ?? (group === newest || (group.run !== null && !hasEnded(group.run.state)));
  }

  private groupOf(event: TaskEvent, shown = true): Group {
    const id = event.run ?? null;
    const held = id === null ? undefined : this.byRun.get(id);
    if (held !== undefined) return held;
    const shownFirst = this.groups.find((one) => !one.early)?.first ?? Number.MAX_SAFE_INTEGER;
    const group: Group = {
      id,
      key: id === null ? `task-${event.seq}` : `run-${id}`,
      first: event.seq,
      run: id === null ? null : (this.known.get(id) ?? null),
      events: [],
      rows: [],
      calls: new Map(),
      painters: new Map(),
      // What was read back on request is folded; what fills a hole among what is shown is shown like it.
      open: this.settled ? shown || event.seq > shownFirst : null,
      early: this.settled && this.groups.length > 0 && event.seq < shownFirst,
    };
    if (id !== null) this.byRun.set(id, group);
    this.groups.push(group);
    const before = this.groups[this.groups.length - 2];
    if (before !== undefined && before.first > group.first) this.groups.sort((a, b) => a.first - b.first);
    return group;
  }

  private fold(group: Group, event: TaskEvent): void {
    if (group.id === null) return;
    const run = foldRun(this.known.get(group.id), event);
    this.known.set(group.id, run);
    group.run = run;
  }

  private rebuild(group: Group): void {
    group.rows = [];
    group.calls.clear();
    group.painters.clear();
    if (group.id !== null) {
      let run: Run | undefined;
      for (const event of group.events) run = foldRun(run, event);
      const held = this.known.get(group.id);
      if (run !== undefined) {
        // What the server stated of events that are not here counts for what the ones here leave open.
        const merged =
          held === undefined
            ? run
            : (held.last_seq ?? 0) > (run.last_seq ?? 0)
              ? { ...stated(run), ...stated(held) }
              : { ...stated(held), ...stated(run) };
        this.known.set(group.id, merged as Run);
        group.run = merged as Run;
      }
    }
    for (const event of group.events) this.addRow(group, event);
  }

  private addRow(group: Group, event: TaskEvent): void {
    const { kind, data } = event;
    const call = typeof data.call === 'string' ? data.call : null;
    if (
      group.id !== null &&
      call !== null &&
      (kind === 'tool_use' || kind === 'tool_output' || kind === 'tool_result')
    ) {
      this.addToCall(group, group.id, call, event);
      return;
    }
    const shape = rowKind(event);
    if (shape === 'end') {
      group.rows = group.rows.map((row) =>
        row.kind === 'tool' && !row.closed ? { ...row, closed: true } : row,
      );
    }
    const key = `e${event.seq}`;
    group.rows.push({ kind: shape, key, run: group.id, event });
  }

  private addToCall(group: Group, run: string, call: string, event: TaskEvent): void {
    let at = group.calls.get(call);
    if (at === undefined || (event.kind === 'tool_use' && (group.rows[at] as ToolRow).use !== null)) {
      at = group.rows.length;
      group.calls.set(call, at);
      group.rows.push({
        kind: 'tool',
        key: `c${event.seq}`,
        run,
        call,
        use: null,
        pieces: [],
        dropped: 0,
        size: 0,
        result: null,
        closed: false,
      });
    }
    const held = group.rows[at] as ToolRow;
    if (event.kind === 'tool_use') {
      group.rows[at] = { ...held, use: event };
    } else if (event.kind === 'tool_result') {
      group.rows[at] = { ...held, result: event, closed: true };
    } else {
      group.rows[at] = this.withOutput(group, held, event);
    }
  }

  private withOutput(group: Group, row: ToolRow, event: TaskEvent): ToolRow {
    const stream = event.data.stream === 'stderr' ? 'stderr' : 'stdout';
    const name = `${row.key} ${stream}`;
    let painter = group.painters.get(name);
    if (painter === undefined) {
      painter = new Painter();
      group.painters.set(name, painter);
    }
    const text = typeof event.data.text === 'string' ? event.data.text : JSON.stringify(event.data);
    const pieces = [
      ...row.pieces,
      { seq: event.seq, stream, html: painter.paint(text), size: text.length, lines: lines(text) },
    ];
    let { dropped } = row;
    let size = row.size + text.length;
    while (pieces.length > 1 && (pieces.length > MAX_PIECES || size > MAX_TEXT)) {
      size -= pieces.shift()!.size;
      dropped += 1;
    }
    return { ...row, pieces, dropped, size };
  }
}

function stated(run: Run): Partial<Run> {
  return Object.fromEntries(Object.entries(run).filter(([, value]) => value !== null && value !== undefined));
}

function lines(text: string): number {
  let count = 0;
  for (let at = text.indexOf('\n'); at !== -1; at = text.indexOf('\n', at + 1)) count += 1;
  return count;
}

/** Whether a status event concerns the task itself and not a run. */
export function isTaskStatus(event: TaskEvent): boolean {
  return (event.run ?? null) === null && TASK_STATES.has(String(event.data.state));
}
