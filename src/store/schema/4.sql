-- Until when a task was paused that was let go on by a clock that was not believed yet, as that clock showed it; in
-- microseconds. It counts once a clock is believed.
ALTER TABLE tasks ADD COLUMN resumed INTEGER;
