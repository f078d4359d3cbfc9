-- Tasks that pause themselves: how many of their runs failed in a row.
ALTER TABLE tasks ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
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
