//! How much memory a process has, and the most that it had while something went on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

/// Resident memory, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Looks again and again until it is ended.
pub struct Growth {
    before: u64,
    most: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    sampler: JoinHandle<()>,
}

impl Growth {
    /// Of a process, from now on.
    pub fn of(pid: u32) -> Self {
        let (before, most, ended) = (resident(pid), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let sampler = tokio::spawn({
            let (most, ended) = (Arc::clone(&most), Arc::clone(&ended));
            async move {
                while !ended.load(Ordering::Relaxed) {
                    most.fetch_max(resident(pid), Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        });
        Self { before, most, ended, sampler }
    }

    /// How much it had before, and by how much more it had at most.
    pub async fn end(self) -> (u64, u64) {
        self.ended.store(true, Ordering::Relaxed);
        self.sampler.await.unwrap();
        (self.before, self.most.load(Ordering::Relaxed).saturating_sub(self.before))
    }
}
