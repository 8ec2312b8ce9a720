//! Where codecs of large values run: on threads that may block, a few at a time.

use std::io;

use tokio::sync::Semaphore;

use crate::storage::object::payload::run_blocking;

/// The coders that may run at once of values in memory.
static IN_MEMORY: Semaphore = Semaphore::const_new(4);

/// The coders that may run at once of values that pass through files. Each may take minutes, so values in memory do not
/// wait for them. Each may hold up to 128 MiB of a value, to which the format refers back.
static STREAMED: Semaphore = Semaphore::const_new(4);

/// Runs a codec on a thread that may block.
///
/// The permit belongs to the thread: a caller that is dropped meanwhile, at a time limit, does not make room for another
/// coder before this one has ended.
pub(super) async fn coded<T: Send + 'static>(
    is_streamed: bool,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let coders = if is_streamed { &STREAMED } else { &IN_MEMORY };
    let permit = coders.acquire().await.map_err(io::Error::other)?;
    run_blocking(move || {
        let done = work();
        drop(permit);
        done
    })
    .await
}
