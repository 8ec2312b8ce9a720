//! A task during which nothing else happens.

use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll};

/// Lets what a future hands to the blocking thread begin after its poll, and end before anything else goes on.
///
/// Otherwise the speed of that thread would decide whether the loop first sees the end of what it read, or something else that happens
/// at the same time. The runtime has one blocking thread only, which does one thing after another.
pub(crate) struct Sequential<F, B> {
    future: Pin<Box<F>>,
    may_block: B,
}

impl<F: Future, B: FnMut() -> bool> Sequential<F, B> {
    /// Takes a future and what tells whether its next poll may need the blocking thread; asking the thread each time is slow.
    pub(crate) fn new(future: F, may_block: B) -> Self {
        Self { future: Box::pin(future), may_block }
    }
}

impl<F: Future, B: FnMut() -> bool + Unpin> Future for Sequential<F, B> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if !(self.may_block)() {
            return self.future.as_mut().poll(context);
        }
        // Nothing is ever sent: a channel ends when its sender is dropped.
        let (begin, may_begin) = mpsc::channel::<()>();
        drop(tokio::task::spawn_blocking(move || may_begin.recv().is_err()));
        let polled = self.future.as_mut().poll(context);
        drop(begin);
        let (ended, all_ended) = mpsc::channel::<()>();
        drop(tokio::task::spawn_blocking(move || drop(ended)));
        all_ended.recv().unwrap_err();
        polled
    }
}
