-- Tasks that pause themselves: how many of their runs failed in a row.
ALTER TABLE tasks ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;

-- What is asked whenever a slot is planned or its run starts, however many slots and ended runs are kept.
CREATE INDEX slots_by_run ON slots (run) WHERE run IS NOT NULL;
CREATE INDEX runs_open_by_task ON runs (task, state) WHERE state IN ('queued', 'running', 'waiting');
