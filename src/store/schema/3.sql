-- How each chore of housekeeping went last.
CREATE TABLE housekeeping (
  chore TEXT PRIMARY KEY,
  at INTEGER NOT NULL,                 -- microseconds: when it began
  duration_ms INTEGER NOT NULL,
  ok INTEGER NOT NULL,
  result TEXT NOT NULL
) STRICT, WITHOUT ROWID;
