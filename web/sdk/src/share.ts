// What a connection needs to know of other tabs: nothing but where a socket to whoever holds it comes from.

import type { Connection, ConnectionOptions } from './connection.js';
import type { Environment, Socket } from './environment.js';

export interface Tabs {
  /** Whether the connection is held here. */
  holds(): boolean;
  open(): Socket;
  close(): void;
}

/** Makes the one connection, for whoever holds it. */
export type Make = (options: ConnectionOptions) => Connection;

/** Finds the other tabs; null where they cannot find each other. */
export type Share = (url: string, env: Environment, make: Make) => Tabs | null;
