CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- One row a task. The log of a task is the range [oldest, head]; `bytes` is all event JSON it ever held.
CREATE TABLE tasks (
  no INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  gen INTEGER NOT NULL,
  oldest INTEGER NOT NULL DEFAULT 1,
  head INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,
  source TEXT NOT NULL,                -- 'file' or 'store'
  definition TEXT NOT NULL,            -- JSON; the last good one
  enabled INTEGER NOT NULL DEFAULT 1,  -- 0: the file is gone
  paused INTEGER NOT NULL DEFAULT 0,
  anchor INTEGER NOT NULL,             -- microseconds: creation or last edit of the schedule
  planned INTEGER NOT NULL,            -- microseconds: every slot up to here has its row
  next INTEGER,                        -- microseconds: the next slot
  created INTEGER NOT NULL
) STRICT;

-- One row a segment: key = task no << 40 | last seq. `total` counts the task's event JSON through this row.
CREATE TABLE segments (
  key INTEGER PRIMARY KEY,
  first INTEGER NOT NULL,
  at INTEGER NOT NULL,                 -- microseconds: of the last event
  total INTEGER NOT NULL,
  ends BLOB NOT NULL,                  -- end offsets, u32 little-endian
  items TEXT NOT NULL                  -- event objects joined by commas
) STRICT;

-- Events that were too large, as they were.
CREATE TABLE whole_events (
  key INTEGER PRIMARY KEY,             -- task no << 40 | seq
  event TEXT NOT NULL
) STRICT;

-- What folding the events of a run gives; outlives the events.
CREATE TABLE runs (
  id TEXT PRIMARY KEY,
  task INTEGER NOT NULL REFERENCES tasks (no) ON DELETE CASCADE,
  state TEXT NOT NULL,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  slot INTEGER,                        -- microseconds: scheduled_for
  attempt INTEGER NOT NULL,
  run TEXT NOT NULL                    -- the run object as JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX runs_by_task ON runs (task, id);
CREATE INDEX runs_open ON runs (state) WHERE state IN ('queued', 'running', 'waiting');
CREATE UNIQUE INDEX runs_by_slot ON runs (task, slot, attempt) WHERE slot IS NOT NULL;

-- What a run was started with and which processes it has: for the start after a crash.
CREATE TABLE processes (
  run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  call TEXT NOT NULL,
  pid INTEGER NOT NULL,
  start_ticks INTEGER NOT NULL,
  PRIMARY KEY (run, call, pid, start_ticks)
) STRICT, WITHOUT ROWID;

-- One row a slot, or a streak of equal slots. Unique: a slot is claimed once.
CREATE TABLE slots (
  task INTEGER NOT NULL REFERENCES tasks (no) ON DELETE CASCADE,
  gen INTEGER NOT NULL,
  scheduled_for INTEGER NOT NULL,      -- microseconds
  through INTEGER NOT NULL,            -- microseconds: the last of a streak
  count INTEGER NOT NULL DEFAULT 1,
  outcome TEXT NOT NULL,
  run TEXT,
  late_ms INTEGER,
  reason TEXT,
  PRIMARY KEY (task, gen, scheduled_for)
) STRICT, WITHOUT ROWID;

-- Signed-in browsers. Only a hash of the cookie is kept.
CREATE TABLE devices (
  id TEXT PRIMARY KEY,
  hash BLOB NOT NULL UNIQUE,
  name TEXT NOT NULL,
  created INTEGER NOT NULL,
  seen INTEGER NOT NULL,
  expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What an unsafe call with an idempotency key did, kept for a day.
CREATE TABLE effects (
  key TEXT PRIMARY KEY,
  request BLOB NOT NULL,               -- hash of what was asked
  status INTEGER NOT NULL,
  body TEXT NOT NULL,
  task TEXT,                           -- for whom it may be shown
  at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
