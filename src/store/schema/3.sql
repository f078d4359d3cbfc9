-- Tasks that pause themselves: how many of their runs failed in a row.
ALTER TABLE tasks ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
-- Schedules: when a slot was planned to start, where that is not its own time.
ALTER TABLE slots ADD COLUMN planned_for INTEGER;  -- microseconds
-- The task's own number, from which the jitter of its slots is drawn.
ALTER TABLE tasks ADD COLUMN seed INTEGER NOT NULL DEFAULT 0;
UPDATE tasks SET seed = random();
-- Microseconds: up to here slots may have been claimed under a clock that was wrong.
ALTER TABLE tasks ADD COLUMN claimed INTEGER;
-- How each chore of housekeeping went last.
CREATE TABLE housekeeping (
  chore TEXT PRIMARY KEY,
  at INTEGER NOT NULL,                 -- microseconds: when it began
  duration_ms INTEGER NOT NULL,
  ok INTEGER NOT NULL,
  result TEXT NOT NULL
) STRICT, WITHOUT ROWID;
-- Notifications.

-- What happened that somebody may have to be told of, from the transaction in which it happened until it is decided
-- who is told. Filled by triggers of the writer's connection, while there are channels.
CREATE TABLE happenings (
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  task INTEGER NOT NULL REFERENCES tasks (no) ON DELETE CASCADE,
  what TEXT NOT NULL,                  -- the state of the run, or the outcome of the slot
  run TEXT,
  slot INTEGER,                        -- microseconds: the first
  count INTEGER,                       -- slots
  late_ms INTEGER,
  reason TEXT
) STRICT;

-- What people were told of a task lately: what else is worth telling follows from it.
CREATE TABLE standings (
  task INTEGER PRIMARY KEY REFERENCES tasks (no) ON DELETE CASCADE,
  due INTEGER,                         -- microseconds: when what was held back is told
  standing TEXT NOT NULL               -- JSON
) STRICT;
CREATE INDEX standings_due ON standings (due) WHERE due IS NOT NULL;

-- What is told to whom, and whether it arrived. Outlives the task and the run.
CREATE TABLE notifications (
  n INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,             -- the same at each try, for receivers to know it by
  subject TEXT NOT NULL,               -- what it is about: a channel is told once of each
  channel TEXT NOT NULL,
  event TEXT NOT NULL,
  task TEXT,
  run TEXT,
  at INTEGER NOT NULL,                 -- microseconds
  state TEXT NOT NULL,                 -- 'pending', 'held', 'sent', 'failed', 'dropped'
  attempts INTEGER NOT NULL DEFAULT 0,
  next INTEGER,                        -- microseconds: when it is tried; only of those that wait
  sent INTEGER,                        -- microseconds
  error TEXT,
  notice TEXT NOT NULL,                -- JSON
  UNIQUE (channel, subject)
) STRICT;
CREATE INDEX notifications_waiting ON notifications (channel, next) WHERE next IS NOT NULL;
CREATE INDEX notifications_by_task ON notifications (task, n);

-- What is asked whenever a slot is planned or its run starts, however many slots and ended runs are kept.
CREATE INDEX slots_by_run ON slots (run) WHERE run IS NOT NULL;
CREATE INDEX runs_open_by_task ON runs (task, state) WHERE state IN ('queued', 'running', 'waiting');
