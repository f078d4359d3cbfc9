//! `GET /api/v1/calendar`: when all tasks are due in the days to come.

use axum::Json;
use axum::extract::{Query, State};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use crate::event::TaskId;
use crate::schedule::calendar::{self, Entry};
use crate::schedule::timing;

/// The most days.
const MAX_DAYS: u8 = 31;
/// The most lines of one answer; the tasks behind it are counted in `left_off`.
const MAX_ITEMS: usize = 5_000;
/// The most days and moments that are looked at for one answer.
const MAX_LOOKS: u64 = 100_000;

/// Which days are asked for.
#[derive(Debug, Deserialize)]
pub struct CalendarQuery {
    days: Option<String>,
    tz: Option<String>,
}

/// When all tasks are due that run by themselves, those that are due soonest first in the reckoning, and the whole in
/// the order of time. O(tasks × days), bounded.
///
/// # Errors
/// 400 with the field.
pub async fn calendar(State(api): State<Api>, Query(query): Query<CalendarQuery>) -> Result<Json<Value>, ApiError> {
    let days = match query.days.as_deref().map(str::parse::<u8>) {
        None => 7,
        Some(Ok(days)) if (1..=MAX_DAYS).contains(&days) => days,
        Some(_) => return Err(ApiError::invalid("days", format!("days must be a number from 1 to {MAX_DAYS}"))),
    };
    let zone = match query.tz.as_deref() {
        None => api.viewer.registry.zone().clone(),
        Some(name) => timing::zone(name).map_err(|why| ApiError::invalid("tz", why))?,
    };
    let now = api.publisher.clock().now();
    let registry = api.viewer.registry.clone();
    let computed = tokio::task::spawn_blocking(move || {
        let mut tasks: Vec<_> = registry.all().into_iter().filter(|task| task.is_scheduled()).collect();
        tasks.sort_by_key(|task| (task.next.is_none(), task.next));
        let days = calendar::days(now, &zone, days);
        let (mut budget, mut left_off) = (MAX_LOOKS, 0);
        let mut items: Vec<(Timestamp, Value)> = Vec::new();
        for task in tasks {
            let Some(timing) = &task.timing else { continue };
            if budget == 0 || items.len() >= MAX_ITEMS {
                left_off += 1;
                continue;
            }
            let entries = calendar::entries(timing, task.anchor, &days, &mut budget);
            items.extend(entries.into_iter().map(|entry| item(&task.id, &entry, &zone)));
        }
        items.sort_by_key(|(at, _)| *at);
        let shown = |at: Timestamp| wall(&at.to_zoned(zone.clone()));
        let to = days.last().map_or(now, |(_, until)| *until);
        let items: Vec<Value> = items.into_iter().map(|(_, item)| item).collect();
        json!({
            "from": shown(now),
            "to": shown(to),
            "tz": timing::zone_name(&zone),
            "items": items,
            "left_off": left_off,
        })
    });
    computed.await.map(Json).map_err(|error| ApiError::internal(&error))
}

/// One line, and the moment it begins at. All moments are in the zone that was asked for.
fn item(task: &TaskId, entry: &Entry, zone: &TimeZone) -> (Timestamp, Value) {
    let shown = |at: Timestamp| wall(&at.to_zoned(zone.clone()));
    match entry {
        Entry::At(moment) => {
            let at = moment.at.timestamp();
            (at, json!({ "task": task, "at": shown(at), "note": moment.note }))
        }
        Entry::Dense { from, to, count } => {
            let item = json!({
                "task": task,
                "from": shown(*from),
                "to": shown(*to),
                "count": count,
            });
            (*from, item)
        }
    }
}

/// A moment with its offset, to the second.
fn wall(at: &Zoned) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
