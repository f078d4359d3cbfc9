// What the page knows: the connection, the tasks, the notices. The client does the work; this makes it visible.

import { Connection, Problem } from '@rejoin/client';
import type { ConnectionStatus, Notice, Task, TasksFrame } from '@rejoin/client';
import { Outbox, type OutboxEntry } from '@rejoin/client/outbox';
import { tabs } from '@rejoin/client/tabs';
import { PageApi } from './api';
import { forgetAll } from './typed';

/** Who presses Run wants it soon. What has waited for so long is shown, and not sent behind anybody's back. */
const MAX_AGE_MS = 3_600_000;

export interface Toast {
  id: number;
  text: string;
}

/** The tabs elect one of them; a worker only where there are no locks to do so with. */
const share = navigator.locks
  ? tabs()
  : tabs({
      worker: () =>
        new SharedWorker(new URL('../tabs.worker.ts', import.meta.url), { type: 'module', name: 'rejoin' }),
    });

class Live {
  readonly api = new PageApi();
  readonly connection = new Connection({
    tasks: true,
    share,
    log: (text, fields) => console.debug(`rejoin: ${text}`, fields ?? ''),
  });
  readonly outbox = new Outbox({ connection: this.connection, maxAgeMs: MAX_AGE_MS });

  status = $state.raw<ConnectionStatus>(this.connection.status);
  tasks = $state.raw<ReadonlyMap<string, Task>>(new Map());
  /** False until the first whole list, when an empty map means nothing yet. */
  listed = $state(false);
  notices = $state.raw<readonly Notice[]>([]);
  /** What was asked for and has not been answered. */
  waiting = $state.raw<readonly OutboxEntry[]>([]);
  toasts = $state.raw<readonly Toast[]>([]);
  signInError = $state<string | null>(null);
  signingIn = $state(false);
  private signedOut = $state(false);
  private toastId = 0;

  needsSignIn = $derived(
    this.signedOut || this.status.blocked === 'sign_in' || this.status.blocked === 'expired',
  );

  /** Changes only when it does: the status is made anew with each sign of life. */
  connected = $derived(this.status.state === 'connected');

  constructor() {
    this.outbox.listen((entries) => (this.waiting = entries));
    this.connection.listen({
      status: (status) => {
        const before = this.status;
        this.status = status;
        // A fresh connection gets the notices that still hold; older ones say nothing any more.
        if (status.state === 'connected' && before.state !== 'connected') this.notices = [];
      },
      tasks: (frame) => this.applyTasks(frame),
      notice: (notice) => {
        const others = this.notices.filter((held) => held.code !== notice.code);
        this.notices = notice.over === true ? others : [...others, notice];
      },
    });
  }

  /** A sign-in link carries a code behind `#`. It leaves the address before anything else happens. */
  async start(): Promise<void> {
    const code = /^#code=(.+)$/.exec(location.hash)?.[1];
    if (location.hash !== '') history.replaceState(history.state, '', location.pathname + location.search);
    if (code !== undefined) {
      const done = await this.exchange({ code: decodeURIComponent(code) });
      if (!done) {
        this.signedOut = true;
        // A link that was opened twice fails the second time; the cookie of the first may still be good.
        const session = await this.api.session().catch(() => null);
        if (session === null) return;
        this.signedOut = false;
        this.signInError = null;
      }
    }
    this.connection.start();
  }

  async signIn(proof: string): Promise<void> {
    const text = proof.trim();
    const code = /#code=(.+)$/.exec(text)?.[1];
    const done =
      code !== undefined ? await this.exchange({ code }) : await this.exchange({ code: text }, text);
    if (!done) return;
    this.signedOut = false;
    this.connection.retry();
  }

  async signOut(): Promise<void> {
    await this.api.signOut().catch(() => undefined);
    this.connection.stop();
    this.signedOut = true;
    this.tasks = new Map();
    this.listed = false;
    // Whoever signs in next is somebody else.
    await Promise.all([this.outbox.clear(), forgetAll()]);
  }

  async takeBack(entry: OutboxEntry): Promise<void> {
    if (!(await this.outbox.takeBack(entry.id))) {
      this.toast('It was taken back, but may have arrived before');
    }
  }

  /** Any call may find out that the session is over. */
  heard(error: unknown): string {
    if (error instanceof Problem) {
      if (error.status === 401) {
        this.connection.stop();
        this.signedOut = true;
      }
      return error.message;
    }
    return String(error);
  }

  toast(text: string): void {
    const id = ++this.toastId;
    this.toasts = [...this.toasts, { id, text }];
    setTimeout(() => {
      this.toasts = this.toasts.filter((toast) => toast.id !== id);
    }, 6000);
  }

  put(task: Task): void {
    this.tasks = new Map(this.tasks).set(task.id, task);
  }

  private applyTasks(frame: TasksFrame): void {
    const tasks = new Map(frame.full ? [] : this.tasks);
    for (const task of frame.items) tasks.set(task.id, task);
    for (const id of frame.removed ?? []) tasks.delete(id);
    this.tasks = tasks;
    if (frame.full) this.listed = true;
  }

  /** A code and a token look alike to a person, so what is not taken as one is tried as the other. */
  private async exchange(proof: { code: string }, token?: string): Promise<boolean> {
    this.signingIn = true;
    this.signInError = null;
    try {
      await this.api.signIn(proof);
      return true;
    } catch (first) {
      const refused = first instanceof Problem && first.status >= 400 && first.status < 500;
      if (refused && token !== undefined) {
        try {
          await this.api.signIn({ token });
          return true;
        } catch {
          // The first answer is the one to show.
        }
      }
      this.signInError = refused
        ? 'That code or token was not accepted. A code works once and for one minute: make a new one with rejoin open.'
        : first instanceof Problem
          ? first.message
          : String(first);
      return false;
    } finally {
      this.signingIn = false;
    }
  }
}

export const live = new Live();
