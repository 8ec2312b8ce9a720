//! Limits of single tasks, as remote control sets them: how often they begin and how long they run.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::celery::control::RateLimit;

/// The longest time that a command sleeps before it looks at its limit again, which may have changed.
const LOOK: Duration = Duration::from_secs(1);

/// The limits of all tasks; they hold until the worker ends.
#[derive(Clone, Debug, Default)]
pub(in crate::worker) struct TaskLimits {
    rates: BTreeMap<&'static str, Rate>,
    times: BTreeMap<&'static str, TimeLimits>,
    /// Counts the changes of rates: a start that was promised before one is void.
    changes: u64,
}

/// How long a task may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::worker) struct TimeLimits {
    pub(in crate::worker) hard: Option<Duration>,
    pub(in crate::worker) soft: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Rate {
    every: Duration,
    text: String,
    /// When the next command may begin that has no promise yet.
    next: Instant,
    /// Before this time none may begin, whatever was promised.
    free_at: Instant,
    /// How many had to wait.
    waited: u64,
}

/// The time at which a command may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct PromisedStart {
    at: Instant,
    changes: u64,
}

impl TaskLimits {
    /// Sets how often a task may begin; `text` is shown.
    pub(in crate::worker) fn set_rate(&mut self, task: &'static str, limit: RateLimit, text: String) {
        self.changes += 1;
        match limit {
            RateLimit::None => _ = self.rates.remove(task),
            RateLimit::Every(every) => {
                let now = Instant::now();
                self.rates.insert(task, Rate { every, text, next: now, free_at: now, waited: 0 });
            }
        }
    }

    /// Sets how long a task may run.
    pub(in crate::worker) fn set_times(&mut self, task: &'static str, limits: TimeLimits) {
        self.times.insert(task, limits);
    }

    /// Returns how long a task may run where that was set.
    pub(in crate::worker) fn times(&self, task: &str) -> Option<TimeLimits> {
        self.times.get(task).copied()
    }

    /// Returns the rate of a task as it was set.
    pub(in crate::worker) fn rate(&self, task: &str) -> Option<&str> {
        self.rates.get(task).map(|rate| rate.text.as_str())
    }

    /// Walks the tasks with a rate: name, rate as it was set, commands that had to wait.
    pub(in crate::worker) fn rates(&self) -> impl Iterator<Item = (&'static str, &str, u64)> {
        self.rates.iter().map(|(task, rate)| (*task, rate.text.as_str(), rate.waited))
    }

    /// Walks the tasks with time limits.
    pub(in crate::worker) fn all_times(&self) -> impl Iterator<Item = (&'static str, TimeLimits)> {
        self.times.iter().map(|(task, limits)| (*task, *limits))
    }

    /// Asks whether a command may begin now. If not, tells for how long it waits before it asks again; the promise, which it keeps
    /// meanwhile, holds its place among the others of its task.
    pub(in crate::worker) fn wait(
        &mut self,
        task: &'static str,
        promised: &mut Option<PromisedStart>,
    ) -> Option<Duration> {
        let changes = self.changes;
        let rate = self.rates.get_mut(task)?;
        let now = Instant::now();
        let start = match *promised {
            Some(start) if start.changes == changes => start,
            _ => {
                let at = rate.next.max(now);
                rate.next = at + rate.every;
                rate.waited += u64::from(at > now);
                *promised.insert(PromisedStart { at, changes })
            }
        };
        let at = start.at.max(rate.free_at);
        if at > now {
            return Some((at - now).min(LOOK));
        }
        rate.free_at = now + rate.every;
        None
    }

    /// Takes a promise back: the command comes again, and its place in time is free.
    pub(in crate::worker) fn release(&mut self, task: &'static str, promised: Option<PromisedStart>) {
        if let (Some(rate), Some(start)) = (self.rates.get_mut(task), promised)
            && start.changes == self.changes
        {
            rate.next = rate.next.min(start.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn commands_begin_one_after_another_at_the_rate() {
        let mut limits = TaskLimits::default();
        let mut promises = [None; 4];
        assert_eq!(limits.wait("a", &mut promises[0]), None, "no limit");
        limits.set_rate("a", RateLimit::Every(Duration::from_millis(400)), "2.5/s".to_owned());
        let waits = promises.each_mut().map(|promise| limits.wait("a", promise));
        let milliseconds = waits.map(|wait| wait.map(|wait| wait.as_millis()));
        assert_eq!(milliseconds, [None, Some(400), Some(800), Some(1000)], "a longer wait is looked at again");
        tokio::time::advance(Duration::from_millis(800)).await;
        assert_eq!(limits.wait("a", &mut promises[2]), None);
        assert_eq!(limits.wait("a", &mut promises[3]), Some(Duration::from_millis(400)));
        assert_eq!(limits.rates().collect::<Vec<_>>(), [("a", "2.5/s", 3)]);
        limits.set_rate("a", RateLimit::None, String::new());
        assert_eq!(limits.wait("a", &mut promises[3]), None, "who waits is released");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_given_back_is_given_again_and_the_rate_holds() {
        let mut limits = TaskLimits::default();
        let mut promises = [None; 3];
        limits.set_rate("a", RateLimit::Every(Duration::from_secs(10)), "6/m".to_owned());
        assert_eq!(promises.each_mut().map(|promise| limits.wait("a", promise))[0], None);
        limits.release("a", promises[1]);
        let mut again = None;
        assert!(limits.wait("a", &mut again).is_some());
        assert_eq!(again, promises[1]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(limits.wait("a", &mut again), None);
        tokio::time::advance(Duration::from_secs(9)).await;
        let mut other = again;
        assert!(limits.wait("a", &mut other).is_some(), "nine seconds after the last one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_voids_what_was_promised() {
        let mut limits = TaskLimits::default();
        let mut promises = [None; 3];
        limits.set_rate("a", RateLimit::Every(Duration::from_secs(3600)), "1/h".to_owned());
        assert_eq!(promises.each_mut().map(|promise| limits.wait("a", promise))[1], Some(LOOK));
        limits.set_rate("a", RateLimit::Every(Duration::from_millis(10)), "100/s".to_owned());
        let waits = promises.each_mut().map(|promise| limits.wait("a", promise));
        assert_eq!(waits[1..], [Some(Duration::from_millis(10)), Some(Duration::from_millis(20))]);
    }
}
