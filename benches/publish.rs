//! What one event costs on its way into the log: a producer's lines, parsed, put into batches, committed. No network,
//! no watcher. `cargo bench --bench publish -- [EVENTS]`

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rejoin::clock::Clock;
use rejoin::event::{Body, Gen, RunId, Seq, State, Status};
use rejoin::store::{Durability, Store, StoreError, TaskNo};
use rejoin::stream::batch::{Batch, Producer};
use rejoin::stream::checkpoint::Checkpointer;
use rejoin::stream::publish::{Limits, Publisher};
use rejoin::stream::topic::Start;
use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct Line<'a> {
    n: u64,
    #[serde(borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

fn main() {
    let events: u64 = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(200_000);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async move {
        let opened = Store::open(dir.path(), Durability::Normal, 64).unwrap();
        let store = Arc::new(opened.store);
        let (publisher, writer) = Publisher::start(opened.writer, Limits::default(), Clock::system()).unwrap();
        let mut checkpointer = Checkpointer::new(&store).unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let ticking = std::thread::spawn({
            let (publisher, store, stop) = (publisher.clone(), store.clone(), stop.clone());
            move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(100));
                    checkpointer.tick(&store, &publisher);
                }
            }
        });
        let generation = Gen::random();
        let (no, _) = publisher
            .transact(move |connection| -> Result<_, StoreError> {
                connection.execute(
                    "INSERT INTO tasks (id, gen, source, definition, anchor, planned, created)
                     VALUES ('bench', 1, 'store', '{}', 0, 0, 0)",
                    [],
                )?;
                Ok((TaskNo(connection.last_insert_rowid()), Vec::new()))
            })
            .await
            .unwrap();
        let start = Start { generation, oldest: Seq(1), head: Seq(0), bytes: 0, fold: Default::default() };
        let topic = publisher.open("bench".parse().unwrap(), no, start);
        let run = RunId::new();
        for state in [State::Queued, State::Started] {
            publisher.publish(&topic, Some(run), &Body::Status(Status::new(state, ""))).await.unwrap();
        }
        let producer = Producer::new(0);
        let turn = publisher.take_turn(&producer).await.unwrap();
        let text: String = (0..230).map(|i| char::from(b'a' + ((i * 7 + i / 3) % 26) as u8)).collect();
        let begin = Instant::now();
        let cpu = cpu();
        let mut waiting = std::collections::VecDeque::new();
        let mut n = 0;
        while n < events {
            let mut chunk = String::new();
            while chunk.len() < 128 * 1024 && n < events {
                n += 1;
                chunk.push_str(&format!("{{\"n\":{n},\"kind\":\"thought\",\"data\":{{\"text\":\"{n} {text}\"}}}}\n"));
            }
            let mut batch = Batch::new(&topic.id, run, publisher.clock().now());
            let mut last = 0;
            for line in chunk.lines() {
                let line: Line = serde_json::from_str(line).unwrap();
                batch.push(&line.kind, line.data);
                last = line.n;
            }
            waiting.push_back(publisher.offer_batch(&topic, batch, &turn, last).await.unwrap());
            if waiting.len() > 4 {
                waiting.pop_front().unwrap().await.unwrap().unwrap();
            }
        }
        for saved in waiting {
            saved.await.unwrap().unwrap();
        }
        let took = begin.elapsed();
        let used = self::cpu() - cpu;
        println!(
            "{events} events: {:.0} k/s, {:.2} CPU-s per million",
            events as f64 / took.as_secs_f64() / 1e3,
            used / events as f64 * 1e6
        );
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        ticking.join().unwrap();
        writer.stop();
    });
}

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
