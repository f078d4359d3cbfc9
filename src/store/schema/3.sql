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
