//! Named points at which a test may end the process as `kill -9` would, or hold a thread. Without the feature
//! `failpoints` they are nothing.

/// Passes a point. With `REJOIN_FAILPOINT=name@n` in the environment the n-th pass ends the process by SIGKILL; with
/// `REJOIN_FAILPOINT_FROM=path` beside it passes count from when that file is there.
#[inline]
pub fn hit(name: &str) {
    #[cfg(feature = "failpoints")]
    armed::hit(name);
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// Calls `visit` with the name of every point that this thread passes from now on: a simulation holds the thread
/// there, or ends it by unwinding.
#[cfg(feature = "failpoints")]
pub fn visit_on_this_thread(visit: impl FnMut(&str) + 'static) {
    armed::VISIT.set(Some(Box::new(visit)));
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::cell::Cell;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Point {
        name: String,
        at: u64,
        from: Option<PathBuf>,
        passes: AtomicU64,
    }

    fn point() -> Option<&'static Point> {
        static POINT: OnceLock<Option<Point>> = OnceLock::new();
        POINT
            .get_or_init(|| {
                let text = std::env::var("REJOIN_FAILPOINT").ok()?;
                let (name, at) = text.split_once('@')?;
                let from = std::env::var_os("REJOIN_FAILPOINT_FROM").map(PathBuf::from);
                Some(Point { name: name.to_owned(), at: at.parse().ok()?, from, passes: AtomicU64::new(0) })
            })
            .as_ref()
    }

    type Visit = Box<dyn FnMut(&str)>;

    thread_local! {
        pub(super) static VISIT: Cell<Option<Visit>> = const { Cell::new(None) };
    }

    pub(super) fn hit(name: &str) {
        // Taken out while it is called: a point within the visit is none.
        if let Some(mut visit) = VISIT.take() {
            visit(name);
            VISIT.set(Some(visit));
        }
        let Some(point) = point() else { return };
        let counts = || point.from.as_ref().is_none_or(|from| from.exists());
        if point.name == name && counts() && point.passes.fetch_add(1, Ordering::SeqCst) + 1 == point.at {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
            loop {
                std::thread::park();
            }
        }
    }
}
