// @rejoin/client: watches the tasks of a Rejoin server, comes back by itself, and sends commands that act once.

export { Connection } from './connection.js';
export type {
  Blocked,
  ConnectionHandlers,
  ConnectionOptions,
  ConnectionState,
  ConnectionStatus,
  Log,
} from './connection.js';
export type { Subscription } from './subscription.js';
export type { ResetNews, ResumedNews, SubscriptionHandler, SubscriptionState } from './subscription.js';
export type { CommandOptions } from './command.js';
export type { Transport } from './ladder.js';
export type { Quality } from './quality.js';
export { serveTabs } from './tabs.js';
export { Outbox, browserShelf } from './outbox.js';
export type { OutboxEntry, OutboxOptions, OutboxState, Shelf } from './outbox.js';

export { Api, Problem } from './http.js';
export type { Device, EventQuery, PageOf, Session, Upcoming } from './http.js';

export * from './frames.js';

export { browserEnvironment, uuid } from './environment.js';
export type { Environment, Socket, SocketClass, WakeUp } from './environment.js';

export { TaskLog } from './log.js';
export type { Gap, LogSink } from './log.js';
export { foldRun, hasEnded } from './run.js';
