//! Gives room back that the store no longer needs, in steps that no event waits for long.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use crate::store::{Store, StoreError};
use crate::stream::publish::Publisher;

/// Pages that move in one step: 256 KiB, about a millisecond.
const STEP_PAGES: u64 = 64;
/// Pages that may be free without being given back: 4 MiB that the next busy moment takes again.
const SPARE_PAGES: u64 = 1024;
/// Of a large store, this part may be free likewise.
const SPARE_PART: u64 = 20;
/// Between two steps the writer has time for others.
const PAUSE: Duration = Duration::from_millis(2);

/// How much of the file is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Room {
    pages: u64,
    free: u64,
    page_size: u64,
}

impl Room {
    fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let ask = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, u32>(0)).map(u64::from);
        Ok(Self { pages: ask("page_count")?, free: ask("freelist_count")?, page_size: ask("page_size")? })
    }

    /// How many pages to give back: all that are free but some, once it is worth it.
    fn surplus(self) -> u64 {
        let spare = SPARE_PAGES.max(self.pages / SPARE_PART);
        if self.free > spare { self.free - spare / 2 } else { 0 }
    }
}

/// Gives back what is too much; says how many bytes that were.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn give_back(store: &Arc<Store>, publisher: &Publisher) -> Result<u64, StoreError> {
    let before = store.read(Room::read).await?;
    let mut left = before.surplus();
    while left > 0 {
        let step = left.min(STEP_PAGES);
        let act = move |connection: &Connection| -> Result<_, StoreError> {
            let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({step})"))?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
            Ok(((), Vec::new()))
        };
        publisher.transact(act).await?;
        left -= step;
        tokio::time::sleep(PAUSE).await;
    }
    let after = store.read(Room::read).await?;
    Ok(before.pages.saturating_sub(after.pages) * before.page_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_that_is_free_stays_and_much_of_it_goes() {
        let surplus = |pages, free| Room { pages, free, page_size: 4096 }.surplus();
        assert_eq!(surplus(10_000, 0), 0);
        assert_eq!(surplus(10_000, 1024), 0);
        assert_eq!(surplus(10_000, 1025), 1025 - 512);
        assert_eq!(surplus(1_000_000, 50_000), 0, "a twentieth of a large one");
        assert_eq!(surplus(1_000_000, 50_001), 25_001);
    }
}
