//! The primitives that the two orders rest on; their model under the feature `loom`.

#[cfg(not(feature = "loom"))]
pub use futures_util::task::AtomicWaker;
#[cfg(not(feature = "loom"))]
pub use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(not(feature = "loom"))]
pub use std::sync::{Mutex, MutexGuard};

#[cfg(feature = "loom")]
pub use loom::future::AtomicWaker;
#[cfg(feature = "loom")]
pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(feature = "loom")]
pub use loom::sync::{Mutex, MutexGuard};
