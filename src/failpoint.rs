//! Named points at which a test may end the process as `kill -9` would. Without the feature `failpoints` they
//! are nothing.

/// Passes a point. With `REJOIN_FAILPOINT=name@n` in the environment the n-th pass ends the process by SIGKILL.
#[inline]
pub fn hit(name: &str) {
    #[cfg(feature = "failpoints")]
    armed::hit(name);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Point {
        name: String,
        at: u64,
        passes: AtomicU64,
    }

    fn point() -> Option<&'static Point> {
        static POINT: OnceLock<Option<Point>> = OnceLock::new();
        POINT
            .get_or_init(|| {
                let text = std::env::var("REJOIN_FAILPOINT").ok()?;
                let (name, at) = text.split_once('@')?;
                Some(Point { name: name.to_owned(), at: at.parse().ok()?, passes: AtomicU64::new(0) })
            })
            .as_ref()
    }

    pub(super) fn hit(name: &str) {
        let Some(point) = point() else { return };
        if point.name == name && point.passes.fetch_add(1, Ordering::SeqCst) + 1 == point.at {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
            loop {
                std::thread::park();
            }
        }
    }
}
