//! A passer-by: asks with a cursor of any kind, looks at the outcome and goes. One beyond the end gives the log a new
//! id, for everybody.

use std::sync::Arc;
use std::time::Duration;

use crate::chance::Chance;
use crate::node::Node;
use crate::page;
use crate::watcher::Watcher;
use crate::world::World;

/// How long it stays.
const STAYS: Duration = Duration::from_secs(4);

/// Asks once, by the socket or for a page.
pub async fn ask(world: Arc<World>, node: Arc<Node>, number: u64, task: String) {
    let name = format!("probe{number}");
    let mut chance = Chance::new(world.seed, &name);
    world.tick();
    let (generation, after) = cursor(&world, &mut chance, &task);
    let called = generation.as_deref().map_or("none".to_owned(), |generation| world.name(generation));
    world.trace(&name, &format!("asks for {task} {called} after {after}"));
    if chance.one_in(3) {
        let page = page::fetch(&world, &node, &mut chance, &task, generation.as_deref(), after).await;
        world.trace(&name, page.name());
        return;
    }
    let (mut watcher, _handle) = Watcher::new(&world, &node, &name, std::slice::from_ref(&task));
    watcher.begin_at(&task, generation, after);
    let _ = tokio::time::timeout(STAYS, watcher.watch()).await;
}

/// A cursor of any kind: of a log that is, that was, that never was, or of none; before, within and beyond it.
fn cursor(world: &World, chance: &mut Chance, task: &str) -> (Option<String>, u64) {
    let truth = world.truth();
    let logs = truth.logs(task);
    let Some(now) = logs.last() else { return (None, 0) };
    let log = if chance.one_in(4) { chance.pick(logs) } else { now };
    let generation = match chance.within(0..=9) {
        0 => None,
        1 => Some("00000000deadbeef".to_owned()),
        _ => Some(log.generation.clone()),
    };
    let (oldest, head) = (log.oldest_now(), log.head());
    let edge = chance.within(0..=2);
    let after = match chance.within(0..=9) {
        0 => 0,
        1 => head + 1 + edge,
        2 => (oldest + edge).saturating_sub(2),
        3 => (head + 1).saturating_sub(world.profile.replay.events + edge),
        4 => head,
        _ => chance.within(0..=head),
    };
    (generation, after)
}
