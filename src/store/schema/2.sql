-- What was done under a key is a task and perhaps a run, shown as they are when they are asked for again.
ALTER TABLE effects DROP COLUMN status;
ALTER TABLE effects RENAME COLUMN body TO run;  -- '' for none
-- Whose key it is, so that one credential cannot fill the table; and the order in which keys are forgotten.
ALTER TABLE effects ADD COLUMN credential TEXT NOT NULL DEFAULT '';
CREATE INDEX effects_by_age ON effects (at);
CREATE INDEX effects_by_credential ON effects (credential, at);
