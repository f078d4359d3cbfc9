// @rejoin/client: watches the tasks of a Rejoin server, comes back by itself, and sends commands that act once.

export { Connection } from './connection.js';
export type { Blocked } from './closing.js';
export type {
  ConnectionHandlers,
  ConnectionOptions,
  ConnectionState,
  ConnectionStatus,
  Log,
} from './connection.js';
export type { Subscription } from './subscription.js';
export type { ResetNews, ResumedNews, SubscriptionHandler, SubscriptionState } from './subscription.js';
export { GIVE_UP_MS } from './command.js';
export type { CommandOptions } from './command.js';
export type { Make, Share, Tabs } from './share.js';
export type { Transport } from './ladder.js';
export type { Quality } from './quality.js';

export { Api, Problem } from './http.js';
export type { CallOptions, EventQuery, PageOf } from './http.js';

export * from './frames.js';

export { browserEnvironment } from './environment.js';
export type { Environment, Socket, SocketClass, WakeUp } from './environment.js';

export { hasEnded } from './run.js';
