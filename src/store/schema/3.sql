-- Tasks that pause themselves: how many of their runs failed in a row.
ALTER TABLE tasks ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
