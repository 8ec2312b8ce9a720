//! Which command runs next: permits, order per key, suspects alone.

use std::collections::{HashMap, VecDeque};

use crate::commands::Key;

/// What the schedule needs to know of a job.
pub(super) trait Job {
    /// The key whose jobs run one after another.
    fn key(&self) -> Option<&Key>;
    /// Whether nothing else may run beside it.
    fn is_suspect(&self) -> bool;
}

/// Jobs in the order they arrived, released so that no key has two running and no more run than there are permits.
#[derive(Debug)]
pub(super) struct Schedule<J> {
    permits: usize,
    running: usize,
    /// A suspect runs: nothing else may.
    exclusive: bool,
    /// Jobs whose key is free, in order.
    ready: VecDeque<J>,
    /// Keys with a job that runs or is ready, and the jobs behind it.
    busy: HashMap<Key, VecDeque<J>>,
}

impl<J: Job> Schedule<J> {
    pub(super) fn new(permits: usize) -> Self {
        Self { permits, running: 0, exclusive: false, ready: VecDeque::new(), busy: HashMap::new() }
    }

    /// Takes a job in.
    pub(super) fn submit(&mut self, job: J) {
        if let Some(key) = job.key() {
            if let Some(behind) = self.busy.get_mut(key) {
                behind.push_back(job);
                return;
            }
            self.busy.insert(key.clone(), VecDeque::new());
        }
        self.ready.push_back(job);
    }

    /// Releases the next job that may run now; its end must be told with [`Schedule::done`].
    pub(super) fn next(&mut self) -> Option<J> {
        if self.exclusive || self.running >= self.permits {
            return None;
        }
        let suspect = self.ready.front()?.is_suspect();
        if suspect && self.running > 0 {
            return None;
        }
        let job = self.ready.pop_front()?;
        self.running += 1;
        self.exclusive = suspect;
        Some(job)
    }

    /// Takes back the permit of a job that cannot begin yet; its key stays taken until it is given to [`Schedule::resume`] and done.
    pub(super) const fn put_off(&mut self) {
        self.running -= 1;
        self.exclusive = false;
    }

    /// Takes in a job that was put off; it is the next.
    pub(super) fn resume(&mut self, job: J) {
        self.ready.push_front(job);
    }

    /// Takes back the permit of a job and readies the next one of its key.
    pub(super) fn done(&mut self, key: Option<&Key>) {
        self.running -= 1;
        self.exclusive = false;
        let Some(key) = key else { return };
        match self.busy.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back(next),
            None => {
                self.busy.remove(key);
            }
        }
    }

    /// Drops everything that has not begun.
    pub(super) fn clear(&mut self) {
        self.ready.clear();
        self.busy.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Named(&'static str, Option<Key>, bool);

    impl Job for Named {
        fn key(&self) -> Option<&Key> {
            self.1.as_ref()
        }

        fn is_suspect(&self) -> bool {
            self.2
        }
    }

    fn job(name: &'static str, key: &str) -> Named {
        Named(name, Some(Key::parse(key).unwrap()), false)
    }

    fn release(schedule: &mut Schedule<Named>) -> Vec<&'static str> {
        std::iter::from_fn(|| schedule.next()).map(|job| job.0).collect()
    }

    #[test]
    fn one_key_keeps_its_order_and_others_pass() {
        let mut schedule = Schedule::new(10);
        for (name, key) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a")] {
            schedule.submit(job(name, key));
        }
        schedule.submit(Named("list", None, false));
        assert_eq!(release(&mut schedule), ["a1", "b1", "list"]);
        schedule.done(None);
        schedule.done(job("", "a").key());
        assert_eq!(release(&mut schedule), ["a2"]);
        schedule.done(job("", "b").key());
        schedule.done(job("", "a").key());
        assert_eq!(release(&mut schedule), ["a3"]);
        schedule.done(job("", "a").key());
        assert_eq!(schedule.running, 0);
        assert!(schedule.busy.is_empty(), "free keys cost nothing");
    }

    #[test]
    fn permits_bound_what_runs() {
        let mut schedule = Schedule::new(2);
        for (name, key) in [("a", "a"), ("b", "b"), ("c", "c")] {
            schedule.submit(job(name, key));
        }
        assert_eq!(release(&mut schedule), ["a", "b"]);
        schedule.done(job("", "a").key());
        assert_eq!(release(&mut schedule), ["c"]);
    }

    #[test]
    fn what_is_put_off_gives_its_permit_back_and_keeps_its_key() {
        let mut schedule = Schedule::new(1);
        for (name, key) in [("a1", "a"), ("a2", "a"), ("b", "b")] {
            schedule.submit(job(name, key));
        }
        schedule.submit(Named("suspect", Key::parse("s").ok(), true));
        assert_eq!(release(&mut schedule), ["a1"]);
        schedule.put_off();
        assert_eq!(release(&mut schedule), ["b"]);
        schedule.resume(job("a1", "a"));
        schedule.done(job("", "b").key());
        assert_eq!(release(&mut schedule), ["a1"]);
        schedule.done(job("", "a").key());
        assert_eq!(release(&mut schedule), ["suspect"]);
        schedule.put_off();
        assert_eq!(release(&mut schedule), ["a2"], "a suspect that does not run holds up nobody");
        assert_eq!(schedule.running, 1);
    }

    #[test]
    fn a_suspect_runs_alone() {
        let mut schedule = Schedule::new(10);
        schedule.submit(job("before", "a"));
        schedule.submit(Named("suspect", Key::parse("s").ok(), true));
        schedule.submit(job("after", "b"));
        assert_eq!(release(&mut schedule), ["before"]);
        schedule.done(job("", "a").key());
        assert_eq!(release(&mut schedule), ["suspect"]);
        schedule.done(job("", "s").key());
        assert_eq!(release(&mut schedule), ["after"]);
    }
}
