//! A bucket that is asked again when it asks for patience: the real service takes about one write a second of one name.

use std::future::Future;
use std::time::Duration;

use filestorage::storage::{Backend, ErrorKind, Key, Result};

use crate::forwarding::{Ask, Hook};

/// How often somebody who is asked for patience asks again.
const TIMES: u32 = 60;

#[derive(Debug)]
pub(crate) struct ThrottleWaiting;

impl Hook for ThrottleWaiting {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        _: Ask,
        _: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        for _ in 0..TIMES {
            match work().await {
                Err(error) if error.kind == ErrorKind::Throttled => {
                    tokio::time::sleep(error.retry_after.unwrap_or(Duration::from_secs(1))).await;
                }
                outcome => return outcome,
            }
        }
        work().await
    }
}
