// Holds the connection for all tabs where they cannot elect one of themselves: without TLS there are no locks.

import { serveTabs } from '@rejoin/client/tabs';

serveTabs();
