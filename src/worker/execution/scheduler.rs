//! Which command runs next: permits and their shares, order per key, keys in turn, suspects alone.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::commands::{Key, KeyUse};

/// What the schedule needs to know of a task.
pub(in crate::worker) trait Schedulable {
    /// The keys on each of which tasks run one after another; each of them once, and always the same.
    fn keys(&self) -> &[KeyUse];
    /// Whether nothing else may run beside it.
    fn is_suspect(&self) -> bool;
    /// Which permits it may have; always the same.
    fn share(&self) -> Share;
}

/// Which permits a task may have, by how long it may keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Share {
    /// It is short: any.
    Small,
    /// It moves a large value: half of them.
    Large,
    /// It goes through many objects: a quarter of them, which are of that half.
    Scan,
}

impl Share {
    /// All shares, by the places of their lines.
    const ALL: [Self; 3] = [Self::Small, Self::Large, Self::Scan];

    /// Returns how many tasks of this share may run, together with those of the shares that are part of it.
    const fn most(self, permits: usize) -> usize {
        match self {
            Self::Small => permits,
            Self::Large => permits.div_ceil(2),
            Self::Scan => permits.div_ceil(4),
        }
    }
}

/// How many tasks of each share run.
#[derive(Clone, Copy, Debug, Default)]
struct PermitsInUse([usize; Share::ALL.len()]);

impl PermitsInUse {
    fn sum(self) -> usize {
        self.0.iter().sum()
    }

    /// Counts the tasks of a share, together with those of the shares that are part of it.
    fn within(self, share: Share) -> usize {
        self.0[share as usize..].iter().sum()
    }

    /// Tells whether the share is used up, or one that it is part of.
    fn is_used_up(self, share: Share, permits: usize) -> bool {
        Share::ALL[1..=share as usize].iter().any(|outer| self.within(*outer) >= outer.most(permits))
    }
}

/// A task whose keys are free, and its place among those of all shares.
#[derive(Debug)]
struct Ready<J> {
    place: i64,
    task: J,
}

/// What waits in the line of a key.
#[derive(Debug)]
enum Waiter<J> {
    /// A task that has no other key.
    Whole(J),
    /// One of the keys of the task with this number.
    Part(u64),
}

/// A task of several keys that is not the first in each of its lines yet.
#[derive(Debug)]
struct Gathering<J> {
    task: J,
    /// In how many lines others are before it.
    missing: usize,
}

/// Tasks in the order they arrived, released so that no key has two running and no more run than there are permits.
///
/// A task stands in the line of each of its keys, and is ready once it is the first in all of them. It enters all lines in one step
/// when it arrives, so in every line the tasks stand in the order they arrived, and a task waits only for tasks that arrived before it.
/// No circle of waiting tasks can arise from that: of all tasks that are not done, the one that arrived first waits for none, so
/// something can always go on. A task keeps its place in all lines until [`Scheduler::done`].
///
/// Keys are served in turn: the next task of a key becomes ready when the one before it is done, behind all that is ready by then. So
/// whatever waits for a key, a task of other keys waits for one of them at most.
///
/// Of what is ready, the first runs whose [`Share`] has room. What has none lets others pass and keeps its place.
#[derive(Debug)]
pub(in crate::worker) struct Scheduler<J> {
    permits: usize,
    running: PermitsInUse,
    /// A suspect runs: nothing else may.
    exclusive: bool,
    /// Tasks whose keys are free: for each share a line in the order of the places.
    ready: [VecDeque<Ready<J>>; Share::ALL.len()],
    /// The places of the next task that comes first and the next that comes last.
    places: (i64, i64),
    /// How many tasks wait behind others of their keys.
    behind: usize,
    /// Keys with a task that is the first in their line, and what stands behind it.
    busy: HashMap<Key, VecDeque<Waiter<J>>>,
    /// Tasks of several keys that stand behind others, by their numbers.
    gathering: HashMap<u64, Gathering<J>>,
    /// Tasks that were released and wait for something else than keys and permits, by their numbers.
    resting: BTreeMap<u64, J>,
    /// Number of the last task that got one.
    number: u64,
}

impl<J: Schedulable> Scheduler<J> {
    pub(in crate::worker) fn new(permits: usize) -> Self {
        Self {
            permits,
            running: PermitsInUse::default(),
            exclusive: false,
            ready: [const { VecDeque::new() }; Share::ALL.len()],
            places: (-1, 0),
            behind: 0,
            busy: HashMap::new(),
            gathering: HashMap::new(),
            resting: BTreeMap::new(),
            number: 0,
        }
    }

    /// Takes a task in.
    pub(in crate::worker) fn submit(&mut self, task: J) {
        match task.keys() {
            [] => self.come_last(task),
            [KeyUse { key, .. }] => {
                if let Some(behind) = self.busy.get_mut(key) {
                    behind.push_back(Waiter::Whole(task));
                    self.behind += 1;
                    return;
                }
                self.busy.insert(key.clone(), VecDeque::new());
                self.come_last(task);
            }
            _ => self.submit_to_all(task),
        }
    }

    fn submit_to_all(&mut self, task: J) {
        self.number += 1;
        let mut missing = 0;
        for KeyUse { key, .. } in task.keys() {
            if let Some(behind) = self.busy.get_mut(key) {
                behind.push_back(Waiter::Part(self.number));
                missing += 1;
            } else {
                self.busy.insert(key.clone(), VecDeque::new());
            }
        }
        if missing == 0 {
            self.come_last(task);
        } else {
            self.gathering.insert(self.number, Gathering { task, missing });
            self.behind += 1;
        }
    }

    /// Readies a task behind all that is ready.
    fn come_last(&mut self, task: J) {
        let place = self.places.1;
        self.places.1 += 1;
        self.ready[task.share() as usize].push_back(Ready { place, task });
    }

    /// Releases the next task that may run now; its end must be told with [`Scheduler::done`].
    pub(in crate::worker) fn next(&mut self) -> Option<J> {
        if self.exclusive || self.running.sum() >= self.permits {
            return None;
        }
        let shares = Share::ALL.into_iter().filter(|share| !self.running.is_used_up(*share, self.permits));
        let fronts = shares.filter_map(|share| Some((self.ready[share as usize].front()?.place, share)));
        let (_, share) = fronts.min_by_key(|(place, _)| *place)?;
        let line = &mut self.ready[share as usize];
        let suspect = line.front()?.task.is_suspect();
        if suspect && self.running.sum() > 0 {
            return None;
        }
        let Ready { task, .. } = line.pop_front()?;
        self.running.0[share as usize] += 1;
        self.exclusive = suspect;
        Some(task)
    }

    /// Returns how many tasks may run at once.
    pub(in crate::worker) const fn permits(&self) -> usize {
        self.permits
    }

    /// Sets how many tasks may run at once; what runs beyond that goes on to its end.
    pub(in crate::worker) const fn set_permits(&mut self, permits: usize) {
        self.permits = permits;
    }

    /// Walks the tasks that wait, first those that were released once, then those whose keys are free.
    pub(in crate::worker) fn waiting(&self) -> impl Iterator<Item = &J> {
        let ready = self.ready.iter().flatten().map(|ready| &ready.task);
        let behind = self.busy.values().flatten().filter_map(|waiter| match waiter {
            Waiter::Whole(task) => Some(task),
            Waiter::Part(_) => None,
        });
        self.resting.values().chain(ready).chain(behind).chain(self.gathering.values().map(|gathering| &gathering.task))
    }

    /// Counts the tasks that only wait for others of their kind: of their keys, or of their share.
    pub(in crate::worker) fn blocked(&self) -> usize {
        self.behind + self.beyond_share()
    }

    fn beyond_share(&self) -> usize {
        let used_up = Share::ALL.into_iter().filter(|share| self.running.is_used_up(*share, self.permits));
        used_up.map(|share| self.ready[share as usize].len()).sum()
    }

    /// Tells whether this task could be released now.
    pub(in crate::worker) fn may_run(&self, task: &J) -> bool {
        let running = self.running.sum();
        !self.exclusive
            && running < self.permits
            && !self.running.is_used_up(task.share(), self.permits)
            && (running == 0 || !task.is_suspect())
    }

    /// Keeps a task that cannot begin yet and takes back its permit; its keys stay taken. Returns its number for [`Scheduler::wake`].
    pub(in crate::worker) fn rest(&mut self, task: J) -> u64 {
        self.put_off(&task);
        self.number += 1;
        self.resting.insert(self.number, task);
        self.number
    }

    /// Lets a task go on that rests; it is the next of its share.
    pub(in crate::worker) fn wake(&mut self, number: u64) {
        if let Some(task) = self.resting.remove(&number) {
            self.resume(task);
        }
    }

    /// Takes back the permit of a task that cannot begin yet; its keys stay taken until it is given to [`Scheduler::resume`] and done.
    pub(in crate::worker) fn put_off(&mut self, task: &J) {
        self.give_back(task.share());
    }

    fn give_back(&mut self, share: Share) {
        self.running.0[share as usize] -= 1;
        self.exclusive = false;
    }

    /// Takes in a task that was put off; it is the next of its share.
    pub(in crate::worker) fn resume(&mut self, task: J) {
        let place = self.places.0;
        self.places.0 -= 1;
        self.ready[task.share() as usize].push_front(Ready { place, task });
    }

    /// Takes back the permit of a task with these keys and this share, and readies the next ones in their lines.
    pub(in crate::worker) fn done(&mut self, keys: &[KeyUse], share: Share) {
        self.give_back(share);
        for KeyUse { key, .. } in keys {
            match self.busy.get_mut(key).and_then(VecDeque::pop_front) {
                Some(Waiter::Whole(next)) => {
                    self.behind -= 1;
                    self.come_last(next);
                }
                Some(Waiter::Part(number)) => self.come_first(number),
                None => {
                    self.busy.remove(key);
                }
            }
        }
    }

    /// Notes that a task of several keys is the first in one more of its lines.
    fn come_first(&mut self, number: u64) {
        let Entry::Occupied(mut waiting) = self.gathering.entry(number) else { return };
        waiting.get_mut().missing -= 1;
        if waiting.get().missing == 0 {
            self.behind -= 1;
            let Gathering { task, .. } = waiting.remove();
            self.come_last(task);
        }
    }

    /// Drops everything that has not begun.
    pub(in crate::worker) fn clear(&mut self) {
        self.ready.iter_mut().for_each(VecDeque::clear);
        self.behind = 0;
        self.busy.clear();
        self.gathering.clear();
        self.resting.clear();
    }
}

#[cfg(test)]
mod tests;
