// The way over plain HTTP, dressed up as a socket that speaks the protocol: server-sent events for one task, pages for
// all others, or pages alone. Everything that is known about positions, gaps and coming back applies to it unchanged.

import type { Environment, Socket } from './environment.js';
import type { ClientFrame, EventPage, HeadMark, ServerFrame, SubscribeEntry, Task } from './frames.js';
import type { Api, PageOf, Problem } from './http.js';

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
  retry: string;
}

/** The events of a stream, by the rules that an EventSource keeps. */
export async function* readStream(body: ReadableStream<Uint8Array>): AsyncGenerator<StreamEvent> {
  const bytes = body.getReader();
  const decoder = new TextDecoder();
  const fresh = { event: 'message', data: '' };
  const now: StreamEvent = { ...fresh, id: '', retry: '' };
  let rest = '';
  let cut = false;
  for (;;) {
    const { done, value } = await bytes.read();
    if (done) return;
    let text = decoder.decode(value, { stream: true });
    // The second half of a line's end, of which the first came before.
    if (cut && text[0] === '\n') text = text.slice(1);
    cut = text.endsWith('\r') || (cut && text === '');
    const lines = (rest + text).split(/\r\n|\n|\r/);
    rest = lines.pop()!;
    for (const line of lines) {
      const [, name, text = ''] = /^(\w+)(?:: ?(.*))?$/s.exec(line) ?? [];
      if (name === 'data') now.data += `${text}\n`;
      else if (name !== undefined && name in now) now[name as 'id'] = text;
      if (line !== '') continue;
      if (now.data !== '') yield { ...now };
      Object.assign(now, fresh);
    }
  }
}

export function feedSocket(streams: boolean, api: Api, env: Environment): Socket {
  const all = new AbortController();
  const readers = new Map<number, Reader>();
  /** The reader that has the stream: that of the task looked at last. A browser has few connections to one server. */
  let streaming: Reader | undefined;
  let listed = '';
  let rev = 0;

  const socket = {
    readyState: 0,
    onopen: null,
    onmessage: null,
    onclose: null,
    onerror: null,
    send(text: string): void {
      const frame = JSON.parse(text) as ClientFrame;
      const { type } = frame;
      if (type === 'hello') run(() => begin(frame));
      else if (type === 'subscribe') add(frame);
      else if (type === 'unsubscribe') drop(readers.get(frame.sub));
      else if (type === 'tasks') {
        listed = '';
        run(list);
      } else if (type === 'probe') run(() => api.status(all.signal).then(() => beat()));
    },
    close(): void {
      socket.readyState = 3;
      all.abort();
      for (const { stop } of readers.values()) stop.abort();
    },
  } as { -readonly [name in keyof Socket]: Socket[name] };

  const say = (frame: ServerFrame) => {
    if (socket.readyState === 1) socket.onmessage?.({ data: frame });
  };

  const shut = (code: number, reason: object = {}) => {
    if (socket.readyState > 1) return;
    socket.close();
    socket.onclose?.({ code, reason: JSON.stringify(reason) });
  };

  /** An error about the line, or about who we are, ends all. */
  const fail = ({ status, code, retryMs }: Partial<Problem>) => {
    if (status === 401) shut(code === 'expired' ? 4505 : 4500);
    else shut(status ? 1013 : 1006, { retry_ms: retryMs });
  };

  const run = (action: () => Promise<unknown>) => void action().catch(fail);

  const sleep = (ms: number, { signal }: AbortController) =>
    new Promise<void>((wake) => {
      const done = () => {
        env.clearTimer(timer);
        signal.removeEventListener('abort', done);
        wake();
      };
      const timer = env.setTimer(done, env.visible() ? ms : ms * HIDDEN_FACTOR);
      signal.addEventListener('abort', done);
    });

  function take({ sub, task, gen, after }: SubscribeEntry): Reader {
    for (const held of readers.values()) if (held.task === task) drop(held);
    const reader: Reader = { sub, task, after, stop: new AbortController(), open: false };
    if (gen !== undefined && after > 0) reader.gen = gen;
    readers.set(sub, reader);
    return reader;
  }

  function add(entry: SubscribeEntry, stream = streams): void {
    const reader = take(entry);
    const before = streaming;
    run(() => (stream ? flow(reader, () => {}) : poll(reader)));
    if (!stream || before === undefined) return;
    before.stop.abort();
    before.stop = new AbortController();
    run(() => poll(before));
  }

  function drop(reader: Reader | undefined): void {
    if (reader === undefined) return;
    reader.stop.abort();
    readers.delete(reader.sub);
    if (streaming === reader) streaming = undefined;
  }

  async function begin({ subscribe, tasks, try: sample }: ClientFrame & { type: 'hello' }): Promise<void> {
    const { version } = await api.status(all.signal);
    const last = subscribe.pop() ?? (sample ? { sub: 0, task: sample, after: 0 } : undefined);
    let greeted = false;
    const greet = () => {
      if (greeted) return;
      greeted = true;
      say({ type: 'welcome', protocol: 1, connection: 'http', server: { version, boot: env.uuid() } });
      for (const entry of subscribe) add(entry, false);
      if (tasks) run(list);
    };
    // A stream is trusted once something came over it: there are those that hold everything back.
    if (streams && last) await flow(take(last), greet);
    else if (streams) shut(UNSUPPORTED);
    else {
      greet();
      if (last) add(last);
    }
  }

  /** An error about one task ends that one. */
  function refuse({ sub, task }: Reader, { status, code, message }: Problem): boolean {
    if (status !== 404 && status !== 403) return false;
    drop(readers.get(sub));
    if (status === 404) say({ type: 'subscribed', sub, task, outcome: 'not_found' });
    else say({ type: 'error', sub, code, message });
    return true;
  }

  /** By a stream; `flowing` is called when something has come over it. */
  async function flow(reader: Reader, flowing: () => void): Promise<void> {
    streaming = reader;
    const { signal } = reader.stop;
    const { task, gen, after, sub } = reader;
    const headers: Record<string, string> = gen ? { 'Last-Event-ID': `${gen}.${after}` } : {};
    let retryMs = 0;
    try {
      const path = `/tasks/${encodeURIComponent(task)}/events${gen ? '' : `?after=${after}`}`;
      const { body, headers: said } = await api.open(path, 'text/event-stream', { headers, signal });
      if (!body || !said.get('Content-Type')?.startsWith('text/event-stream')) return shut(UNSUPPORTED);
      for await (const { event, data, id, retry } of readStream(body)) {
        if (signal.aborted) return;
        flowing();
        const frame = JSON.parse(data) as Record<string, unknown>;
        const { heads, outcome } = frame;
        const [, of, seq] = /^(\w+)\.(\d+)$/.exec(id) ?? [];
        retryMs = Number(retry);
        if (of) reader.gen = of;
        if (of) reader.after = Number(seq);
        if (event === 'close') return shut(frame.code === 'expired' ? 4505 : 4000, frame);
        if (event === 'heartbeat') {
          beat(frame.at as string, heads as HeadMark);
          continue;
        }
        if (outcome === 'resumed') reader.after = (frame.from as number) - 1;
        if (event === 'subscribed' || event === 'snapshot') reader.open = outcome !== 'reset';
        say({ ...frame, type: event, sub } as unknown as ServerFrame);
        // What follows is the end of the stream, and not of the others.
        if (outcome === 'not_found') return drop(reader);
      }
    } catch (error) {
      if (signal.aborted) return;
      const { status } = error as Problem;
      if (status === 404) flowing();
      if (status === 406) return shut(UNSUPPORTED);
      if (refuse(reader, error as Problem)) return;
      if (status) throw error;
    }
    // Closed or broken is the same.
    if (!signal.aborted) shut(1006, { retry_ms: retryMs });
  }

  async function poll(reader: Reader): Promise<void> {
    const { sub, task, stop } = reader;
    const { signal } = stop;
    let target = -1;
    while (!signal.aborted) {
      const { gen = null, after } = reader;
      let why = '';
      let page: EventPage;
      try {
        page = await api.events(task, { gen, after, limit: PAGE }, signal);
      } catch (error) {
        const { status, code, body } = error as Problem;
        if (signal.aborted || refuse(reader, error as Problem)) return;
        if (status !== 409 && status !== 410) throw error;
        why = code;
        page = body as unknown as EventPage;
      }
      if (signal.aborted) return;
      const { oldest, head, items } = page;
      const from = after > 0 ? after + 1 : oldest;
      const missed = head - from + 1;
      reader.gen = page.gen;
      if (!why && !reader.open && missed > MAX_REPLAY) why = after > 0 ? 'too_far' : 'from_start';
      if (why || !reader.open) {
        reader.open = true;
        reader.after = why ? head : from - 1;
        const about = { sub, task, gen: page.gen, head };
        if (why) {
          // What the task and its runs look like at the head is not said over pages: the state is left empty.
          say({ ...about, type: 'subscribed', outcome: 'reset', from: head + 1 });
          say({ ...about, type: 'reset', why, have: after, oldest } as ServerFrame);
          say({ ...about, type: 'snapshot', seq: head, truncated: true, state: {} });
        } else say({ ...about, type: 'subscribed', outcome: 'resumed', from, missed });
        target = head;
      }
      const last = why ? undefined : items[items.length - 1];
      if (last) {
        say({ type: 'events', sub, first: items[0]!.seq, last: last.seq, items });
        reader.after = last.seq;
      }
      if (!why && page.more) continue;
      if (reader.after >= target && target >= 0) {
        say({ type: 'caught_up', sub, seq: reader.after });
        target = -1;
      }
      if (!streaming) beat();
      await sleep(POLL_MS, stop);
    }
  }

  /** The list of tasks, told when it is another than before. A second call asks once. */
  async function list(): Promise<void> {
    const again = rev > 0;
    do {
      const items: Task[] = [];
      let cursor: string | null | undefined;
      do {
        const page: PageOf<Task> = await api.call('GET', '/tasks', { query: { cursor }, signal: all.signal });
        items.push(...page.items);
        cursor = page.next;
      } while (cursor);
      const text = JSON.stringify(items);
      if (text !== listed) say({ type: 'tasks', rev: (rev += 1), full: true, items });
      listed = text;
      if (!again) await sleep(TASKS_MS, all);
    } while (!again && !all.signal.aborted);
  }

  function beat(at = new Date(env.now()).toISOString(), mark?: HeadMark): void {
    const heads: Record<string, HeadMark> = {};
    for (const reader of readers.values()) {
      const { sub, after, open } = reader;
      if (open)
        heads[sub] = reader === streaming && mark?.head !== undefined ? mark : { sent: after, head: after };
    }
    say({ type: 'heartbeat', at, heads });
  }

  queueMicrotask(() => {
    if (socket.readyState > 0) return;
    socket.readyState = 1;
    socket.onopen?.({});
  });
  return socket;
}
