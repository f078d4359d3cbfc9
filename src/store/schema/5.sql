-- Asked by the task alone: for a list of states to look for, the store sets up a table each time, which took a tenth of
-- the time in which ten thousand slots have their rows. It serves also whoever asks for the open runs of all tasks, so
-- that a change of state moves one row of an index and not two.
DROP INDEX runs_open;
DROP INDEX runs_open_by_task;
CREATE INDEX runs_open_by_task ON runs (task) WHERE state IN ('queued', 'running', 'waiting');
