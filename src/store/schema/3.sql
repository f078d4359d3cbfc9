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

-- What runs have found and a person should look at: shown until it is acknowledged, less the time it is snoozed.
CREATE TABLE findings (
  run TEXT PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
  task INTEGER NOT NULL REFERENCES tasks (no) ON DELETE CASCADE,
  at INTEGER NOT NULL,                 -- microseconds: the end of the run
  summary TEXT NOT NULL,
  acknowledged INTEGER,                -- microseconds: when
  snoozed INTEGER                      -- microseconds: until when
) STRICT, WITHOUT ROWID;
CREATE INDEX findings_by_task ON findings (task, run);
CREATE INDEX findings_open ON findings (task, run) WHERE acknowledged IS NULL;
CREATE INDEX findings_snoozed ON findings (snoozed) WHERE snoozed IS NOT NULL;
-- What the last run of each task has found was shown until the next one ended; what came before was seen by that.
INSERT INTO findings (run, task, at, summary, acknowledged)
  SELECT id, task, at, summary,
    CASE WHEN id = (SELECT max(id) FROM runs AS other WHERE other.task = found.task
                    AND other.state NOT IN ('queued', 'running', 'waiting')) THEN NULL ELSE at END
  FROM (SELECT id, task, json_extract(run, '$.attention.summary') AS summary,
          CAST(unixepoch(json_extract(run, '$.ended_at'), 'subsec') * 1000000 AS INTEGER) AS at FROM runs) AS found
  WHERE summary IS NOT NULL AND at IS NOT NULL;
