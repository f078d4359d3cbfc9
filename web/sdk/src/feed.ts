// The way over plain HTTP, dressed up as a socket that speaks the protocol: server-sent events for one task, pages for
// all others, or pages alone. Everything that is known about positions, gaps and coming back applies to it unchanged.

import { closeCode } from './closing.js';
import type { Environment, Socket } from './environment.js';
import type { ClientFrame, EventPage, HeadMark, ServerFrame, SubscribeEntry, Task } from './frames.js';
import { Problem, type Api } from './http.js';

/** Close code of a way that does not exist here, e.g. a stream that something between turns into a page. */
export const UNSUPPORTED = 1003;

/** How often pages are asked for; a page that nobody sees asks less. */
const POLL_MS = 3_000;
const TASKS_MS = 5_000;
const HIDDEN_FACTOR = 6;

/** As many as the server replays; beyond that the end is faster, and the rest can be paged when somebody reads it. */
const MAX_REPLAY = 20_000;

const PAGE = 500;

interface Reader extends SubscribeEntry {
  stop: AbortController;
  /** Its outcome is told, and it is not between a reset and its snapshot. */
  open: boolean;
}

interface StreamEvent {
  event: string;
  data: string;
  id: string;
}

export class FeedSocket implements Socket {
  readyState = 0;
  onopen: Socket['onopen'] = null;
  onmessage: Socket['onmessage'] = null;
  onclose: Socket['onclose'] = null;
  onerror: Socket['onerror'] = null;

  private readonly api: Api;
  private readonly env: Environment;
  private readonly streams: boolean;
  private readonly stop = new AbortController();
  private readonly readers = new Map<number, Reader>();
  private streaming: Reader | null = null;
  private listing = false;
  private listed = '';
  private rev = 0;
  private retryMs = 0;

  constructor(streams: boolean, api: Api, env: Environment) {
    this.streams = streams;
    this.api = api;
    this.env = env;
    queueMicrotask(() => {
      if (this.readyState !== 0) return;
      this.readyState = 1;
      this.onopen?.({});
    });
  }

  close(): void {
    this.readyState = 3;
    this.stop.abort();
    for (const { stop } of this.readers.values()) stop.abort();
  }

  send(text: string): void {
    const frame = JSON.parse(text) as ClientFrame;
    switch (frame.type) {
      case 'hello':
        void this.begin(frame);
        return;
      case 'subscribe':
        this.add(frame);
        return;
      case 'unsubscribe':
        this.drop(this.readers.get(frame.sub));
        return;
      case 'tasks':
        this.listed = '';
        void this.list();
        return;
      case 'probe':
        void this.guard(async () => {
          await this.api.status(this.stop.signal);
          this.beat();
        });
        return;
    }
  }

  private async begin(hello: ClientFrame & { type: 'hello' }): Promise<void> {
    await this.guard(async () => {
      const { version } = await this.api.status(this.stop.signal);
      const server = { version, boot: this.env.uuid() };
      let begun = false;
      const begin = (streamed?: Reader) => {
        if (begun) return;
        begun = true;
        this.say({ type: 'welcome', protocol: 1, connection: 'http', server });
        if (hello.tasks) void this.list();
        for (const entry of hello.subscribe) if (entry.sub !== streamed?.sub) this.add(entry, false);
      };
      // A stream is trusted once something came over it: there are those that hold everything back.
      const last = hello.subscribe[hello.subscribe.length - 1];
      const first = last ?? (hello.try ? { sub: 0, task: hello.try, after: 0 } : undefined);
      if (!this.streams || first === undefined) {
        if (this.streams && hello.try === null) this.shut(UNSUPPORTED);
        else begin();
        return;
      }
      const reader = this.take(first);
      this.streaming = reader;
      await this.stream(reader, () => {
        begin(reader);
        if (last === undefined) this.drop(reader);
      });
    });
  }

  private take({ sub, task, gen, after }: SubscribeEntry): Reader {
    for (const held of this.readers.values()) if (held.task === task) this.drop(held);
    const reader: Reader = { sub, task, after, stop: new AbortController(), open: false };
    if (gen !== undefined && after > 0) reader.gen = gen;
    this.readers.set(sub, reader);
    return reader;
  }

  /** The task looked at last gets the stream: a browser has few connections to one server. */
  private add(entry: SubscribeEntry, stream = this.streams): void {
    const reader = this.take(entry);
    if (!stream) {
      void this.guard(() => this.poll(reader));
      return;
    }
    const before = this.streaming;
    this.streaming = reader;
    if (before !== null && this.readers.get(before.sub) === before) {
      before.stop.abort();
      before.stop = new AbortController();
      void this.guard(() => this.poll(before));
    }
    void this.guard(() => this.stream(reader, () => {}));
  }

  private drop(reader: Reader | undefined): void {
    if (reader === undefined) return;
    reader.stop.abort();
    this.readers.delete(reader.sub);
    if (this.streaming === reader) this.streaming = null;
  }

  // Streams.

  private async stream(reader: Reader, flowing: () => void): Promise<void> {
    const { signal } = reader.stop;
    const { task, gen, after, sub } = reader;
    const headers: Record<string, string> = gen && after > 0 ? { 'Last-Event-ID': `${gen}.${after}` } : {};
    let response: Response;
    try {
      const query = gen === undefined && after > 0 ? `?after=${after}` : '';
      const path = `/tasks/${encodeURIComponent(task)}/events${query}`;
      response = await this.api.open(path, 'text/event-stream', headers, { signal });
    } catch (error) {
      const { status } = error as Problem;
      if (signal.aborted) return;
      if (status === 404) flowing();
      if (status === 406) this.shut(UNSUPPORTED);
      else this.refuse(reader, error);
      return;
    }
    if (response.body === null || !response.headers.get('Content-Type')?.startsWith('text/event-stream')) {
      this.shut(UNSUPPORTED);
      return;
    }
    try {
      for await (const { event, data, id } of this.read(response.body)) {
        if (signal.aborted) return;
        flowing();
        const frame = JSON.parse(data || '{}') as Record<string, unknown>;
        const [, of, seq] = /^(\w+)\.(\d+)$/.exec(id) ?? [];
        if (of !== undefined) {
          reader.gen = of;
          reader.after = Number(seq);
        }
        if (event === 'close') {
          this.shut(closeCode(frame.code), frame);
          return;
        }
        if (event === 'heartbeat') {
          this.beat(frame);
          continue;
        }
        if (event === 'subscribed' && frame.outcome === 'resumed') {
          reader.gen = frame.gen as string;
          reader.after = (frame.from as number) - 1;
        }
        if (event === 'subscribed' || event === 'snapshot') reader.open = frame.outcome !== 'reset';
        if (event !== 'welcome') this.say({ ...frame, type: event, sub } as unknown as ServerFrame);
      }
    } catch {
      // A line that broke ends like one that was closed.
    }
    if (!signal.aborted) this.shut(1006, { retry_ms: this.retryMs });
  }

  /** The events of a stream, by the rules that an EventSource keeps. */
  private async *read(body: ReadableStream<Uint8Array>): AsyncGenerator<StreamEvent> {
    const bytes = body.getReader();
    const decoder = new TextDecoder();
    let rest = '';
    let event = '';
    let id = '';
    let data: string[] = [];
    for (;;) {
      const { done, value } = await bytes.read();
      if (done) return;
      // A carriage return at the end may be half of a line's end.
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop()!;
      for (const line of lines) {
        if (line === '') {
          if (data.length > 0) yield { event: event || 'message', data: data.join('\n'), id };
          event = '';
          data = [];
          continue;
        }
        const [, name, text = ''] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
        if (name === 'event') event = text;
        else if (name === 'data') data.push(text);
        else if (name === 'id') id = text;
        else if (name === 'retry') this.retryMs = Number(text) || 0;
      }
    }
  }

  // Pages.

  private async poll(reader: Reader): Promise<void> {
    const { signal } = reader.stop;
    const { sub, task } = reader;
    let target: number | null = null;
    while (!signal.aborted) {
      let page: EventPage;
      try {
        const { gen = null, after } = reader;
        page = await this.api.events(task, { gen, after, limit: PAGE }, signal);
      } catch (error) {
        if (signal.aborted) return;
        const { status, code, body } = error as Problem;
        if (status !== 409 && status !== 410) {
          this.refuse(reader, error);
          return;
        }
        target = await this.jump(reader, code, body as unknown as EventPage);
        continue;
      }
      if (signal.aborted) return;
      const { gen, oldest, head, items } = page;
      if (!reader.open) {
        const from = reader.after > 0 ? reader.after + 1 : oldest;
        const missed = head - from + 1;
        if (missed > MAX_REPLAY) {
          target = await this.jump(reader, reader.after > 0 ? 'too_far' : 'from_start', page);
          continue;
        }
        reader.after = from - 1;
        this.say({ type: 'subscribed', sub, task, outcome: 'resumed', gen, from, head, missed, runs: [] });
        reader.open = true;
        target = head;
      }
      reader.gen = gen;
      const last = items[items.length - 1]?.seq;
      if (last !== undefined) {
        this.say({ type: 'events', sub, first: items[0]!.seq, last, items });
        reader.after = last;
      }
      if (page.more) continue;
      if (target !== null && reader.after >= target) {
        this.say({ type: 'caught_up', sub, seq: reader.after });
        target = null;
      }
      if (this.streaming === null) this.beat();
      await this.sleep(POLL_MS, signal);
    }
  }

  /** There is no snapshot over HTTP; the task and its runs as they are serve for one, without the calls that are open. */
  private async jump(reader: Reader, why: string, { gen, oldest, head }: EventPage): Promise<number> {
    const { signal } = reader.stop;
    const { sub, task, after } = reader;
    const state = await Promise.all([
      this.api.task(task, signal),
      this.api.runs(task, { limit: 100 }, signal),
    ]);
    const runs = state[1].items.reverse();
    const from = head + 1;
    this.say({ type: 'subscribed', sub, task, outcome: 'reset', gen, from, head, runs: [] });
    this.say({ type: 'reset', sub, gen, why, have: after, oldest, head } as ServerFrame);
    this.say({
      type: 'snapshot',
      sub,
      gen,
      seq: head,
      head,
      truncated: true,
      state: { task: state[0], runs, calls: [] },
    });
    reader.gen = gen;
    reader.after = head;
    reader.open = true;
    return head;
  }

  private async list(): Promise<void> {
    const again = this.listing;
    this.listing = true;
    await this.guard(async () => {
      do {
        const items: Task[] = [];
        let cursor: string | null | undefined;
        do {
          const page = await this.api.tasks({ cursor: cursor ?? null }, this.stop.signal);
          items.push(...page.items);
          cursor = page.next;
        } while (cursor);
        const text = JSON.stringify(items);
        if (text !== this.listed) {
          this.listed = text;
          this.rev += 1;
          this.say({ type: 'tasks', rev: this.rev, full: true, items, removed: [] });
        }
        if (!again) await this.sleep(TASKS_MS, this.stop.signal);
      } while (!again && !this.stop.signal.aborted);
    });
  }

  // Small things.

  private beat(frame: Record<string, unknown> = {}): void {
    const heads: Record<string, HeadMark> = {};
    for (const { sub, after, open } of this.readers.values()) {
      if (open) heads[sub] = { sent: after, head: after };
    }
    const streaming = this.streaming;
    if (streaming?.open) {
      // What the server says of its one stream, under whatever name.
      const said = Object.values((frame.heads ?? {}) as Record<string, HeadMark>)[0];
      const { sent = said?.sent, head = said?.head } = frame as Partial<HeadMark>;
      if (sent !== undefined && head !== undefined) heads[streaming.sub] = { sent, head };
    }
    const at = typeof frame.at === 'string' ? frame.at : new Date(this.env.now()).toISOString();
    this.say({ type: 'heartbeat', at, heads });
  }

  private say(frame: ServerFrame): void {
    if (this.readyState === 1) this.onmessage?.({ data: frame });
  }

  /** An error about one task ends that one; one about the line, or about who we are, ends all. */
  private refuse(reader: Reader, error: unknown): void {
    const { status, code, message } = error as Problem;
    const { sub, task } = reader;
    if (status === 404) {
      this.drop(reader);
      this.say({ type: 'subscribed', sub, task, outcome: 'not_found' });
    } else if (status === 403) {
      this.drop(reader);
      this.say({ type: 'error', sub, code, message, retryable: false });
    } else this.fail(error);
  }

  private fail(error: unknown): void {
    const { status = 0, code, retryMs } = error as Partial<Problem>;
    if (status === 401) this.shut(code === 'expired' ? 4505 : 4500, {});
    else this.shut(status === 0 ? 1006 : 1013, { retry_ms: retryMs });
  }

  private async guard(action: () => Promise<void>): Promise<void> {
    try {
      await action();
    } catch (error) {
      if (this.readyState < 2) this.fail(error);
    }
  }

  private shut(code: number, reason: Record<string, unknown> = {}): void {
    if (this.readyState > 1) return;
    this.close();
    this.onclose?.({ code, reason: JSON.stringify(reason) });
  }

  private sleep(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        this.env.clearTimer(timer);
        signal.removeEventListener('abort', wake);
        resolve();
      };
      const timer = this.env.setTimer(wake, this.env.visible() ? ms : ms * HIDDEN_FACTOR);
      signal.addEventListener('abort', wake);
    });
  }
}
