//! Which command runs next: permits, order per key, suspects alone, few that walk over everything.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::commands::{Key, KeyUse};

/// What the schedule needs to know of a task.
pub(in crate::worker) trait Schedulable {
    /// The keys on each of which tasks run one after another; each of them once, and always the same.
    fn keys(&self) -> &[KeyUse];
    /// Whether nothing else may run beside it.
    fn is_suspect(&self) -> bool;
    /// Whether it goes through many objects.
    fn walks(&self) -> bool;
}

/// The part of the permits that tasks may have which go through many objects.
const WALKERS: usize = 4;

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

/// Jobs in the order they arrived, released so that no key has two running and no more run than there are permits.
///
/// A task stands in the line of each of its keys, and is ready once it is the first in all of them. It enters all lines in one step
/// when it arrives, so in every line the tasks stand in the order they arrived, and a task waits only for tasks that arrived before it.
/// No circle of waiting tasks can arise from that: of all tasks that are not done, the one that arrived first waits for none, so
/// something can always go on. A task keeps its place in all lines until [`Scheduler::done`].
#[derive(Debug)]
pub(in crate::worker) struct Scheduler<J> {
    permits: usize,
    running: usize,
    /// A suspect runs: nothing else may.
    exclusive: bool,
    /// How many run of those that walk.
    walking: usize,
    /// Jobs whose keys are free, in order.
    ready: VecDeque<J>,
    /// Of these, those that wait until fewer walk.
    walkers: VecDeque<J>,
    /// How many tasks wait behind others of their keys.
    behind: usize,
    /// Keys with a task that is the first in their line, and what stands behind it.
    busy: HashMap<Key, VecDeque<Waiter<J>>>,
    /// Jobs of several keys that stand behind others, by their numbers.
    gathering: HashMap<u64, Gathering<J>>,
    /// Number of the next task of several keys.
    number: u64,
}

impl<J: Schedulable> Scheduler<J> {
    pub(in crate::worker) fn new(permits: usize) -> Self {
        Self {
            permits,
            running: 0,
            exclusive: false,
            walking: 0,
            ready: VecDeque::new(),
            walkers: VecDeque::new(),
            behind: 0,
            busy: HashMap::new(),
            gathering: HashMap::new(),
            number: 0,
        }
    }

    /// Takes a task in.
    pub(in crate::worker) fn submit(&mut self, task: J) {
        match task.keys() {
            [] => self.ready.push_back(task),
            [KeyUse { key, .. }] => {
                if let Some(behind) = self.busy.get_mut(key) {
                    behind.push_back(Waiter::Whole(task));
                    self.behind += 1;
                    return;
                }
                self.busy.insert(key.clone(), VecDeque::new());
                self.ready.push_back(task);
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
            self.ready.push_back(task);
        } else {
            self.gathering.insert(self.number, Gathering { task, missing });
            self.behind += 1;
        }
    }

    /// Releases the next task that may run now; its end must be told with [`Scheduler::done`].
    pub(in crate::worker) fn next(&mut self) -> Option<J> {
        if self.exclusive || self.running >= self.permits {
            return None;
        }
        while self.ready.front()?.walks() && self.walking >= self.permits.div_ceil(WALKERS) {
            self.walkers.extend(self.ready.pop_front());
        }
        let suspect = self.ready.front()?.is_suspect();
        if suspect && self.running > 0 {
            return None;
        }
        let task = self.ready.pop_front()?;
        self.running += 1;
        self.walking += usize::from(task.walks());
        self.exclusive = suspect;
        Some(task)
    }

    /// Counts the tasks that only wait for others of their kind.
    pub(in crate::worker) fn blocked(&self) -> usize {
        self.behind + self.walkers.len()
    }

    /// Tells whether this task could be released now.
    pub(in crate::worker) fn may_run(&self, task: &J) -> bool {
        !self.exclusive && self.running < self.permits && (self.running == 0 || !task.is_suspect())
    }

    /// Takes back the permit of a task that cannot begin yet; its keys stay taken until it is given to [`Scheduler::resume`] and done.
    pub(in crate::worker) fn put_off(&mut self, task: &J) {
        self.give_back(task.walks());
    }

    fn give_back(&mut self, walks: bool) {
        self.running -= 1;
        self.exclusive = false;
        if walks {
            self.walking -= 1;
            self.ready.extend(self.walkers.pop_front());
        }
    }

    /// Takes in a task that was put off; it is the next.
    pub(in crate::worker) fn resume(&mut self, task: J) {
        self.ready.push_front(task);
    }

    /// Takes back the permit of a task with these keys and readies the next ones in their lines.
    pub(in crate::worker) fn done(&mut self, keys: &[KeyUse], walks: bool) {
        self.give_back(walks);
        for KeyUse { key, .. } in keys {
            match self.busy.get_mut(key).and_then(VecDeque::pop_front) {
                Some(Waiter::Whole(next)) => {
                    self.behind -= 1;
                    self.ready.push_back(next);
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
            self.ready.push_back(waiting.remove().task);
        }
    }

    /// Drops everything that has not begun.
    pub(in crate::worker) fn clear(&mut self) {
        self.ready.clear();
        self.walkers.clear();
        self.behind = 0;
        self.busy.clear();
        self.gathering.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::commands::Keys;

    #[derive(Debug, PartialEq)]
    struct Named(&'static str, Keys, bool);

    impl Schedulable for Named {
        fn keys(&self) -> &[KeyUse] {
            &self.1
        }

        fn is_suspect(&self) -> bool {
            self.2
        }

        fn walks(&self) -> bool {
            self.0 == "list"
        }
    }

    /// The keys of these letters.
    fn keys(letters: &str) -> Keys {
        let used = letters.chars().map(|letter| KeyUse::write(Key::parse(&letter.to_string()).unwrap()));
        Keys::of(&used.collect::<Vec<_>>())
    }

    fn task(name: &'static str, key: &str) -> Named {
        Named(name, keys(key), false)
    }

    fn release(scheduler: &mut Scheduler<Named>) -> Vec<&'static str> {
        std::iter::from_fn(|| scheduler.next()).map(|task| task.0).collect()
    }

    #[test]
    fn one_key_keeps_its_order_and_others_pass() {
        let mut scheduler = Scheduler::new(10);
        for (name, key) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a")] {
            scheduler.submit(task(name, key));
        }
        scheduler.submit(Named("list", Keys::None, false));
        assert_eq!(release(&mut scheduler), ["a1", "b1", "list"]);
        scheduler.done(&[], true);
        scheduler.done(&keys("a"), false);
        assert_eq!(release(&mut scheduler), ["a2"]);
        scheduler.done(&keys("b"), false);
        scheduler.done(&keys("a"), false);
        assert_eq!(release(&mut scheduler), ["a3"]);
        scheduler.done(&keys("a"), false);
        assert_eq!(scheduler.running, 0);
        assert!(scheduler.busy.is_empty(), "free keys cost nothing");
    }

    #[test]
    fn permits_bound_what_runs() {
        let mut scheduler = Scheduler::new(2);
        for (name, key) in [("a", "a"), ("b", "b"), ("c", "c")] {
            scheduler.submit(task(name, key));
        }
        assert_eq!(release(&mut scheduler), ["a", "b"]);
        scheduler.done(&keys("a"), false);
        assert_eq!(release(&mut scheduler), ["c"]);
    }

    #[test]
    fn what_is_put_off_gives_its_permit_back_and_keeps_its_key() {
        let mut scheduler = Scheduler::new(1);
        for (name, key) in [("a1", "a"), ("a2", "a"), ("b", "b")] {
            scheduler.submit(task(name, key));
        }
        scheduler.submit(Named("suspect", keys("s"), true));
        assert_eq!(release(&mut scheduler), ["a1"]);
        scheduler.put_off(&task("a1", "a"));
        assert_eq!(release(&mut scheduler), ["b"]);
        scheduler.resume(task("a1", "a"));
        scheduler.done(&keys("b"), false);
        assert_eq!(release(&mut scheduler), ["a1"]);
        scheduler.done(&keys("a"), false);
        assert_eq!(release(&mut scheduler), ["suspect"]);
        scheduler.put_off(&task("suspect", "s"));
        assert_eq!(release(&mut scheduler), ["a2"], "a suspect that does not run holds up nobody");
        assert_eq!(scheduler.running, 1);
    }

    #[test]
    fn those_that_walk_leave_permits_to_others() {
        let mut scheduler = Scheduler::new(8);
        (0..5).for_each(|_| scheduler.submit(Named("list", Keys::None, false)));
        scheduler.submit(task("a", "a"));
        assert_eq!(release(&mut scheduler), ["list", "list", "a"]);
        assert_eq!(scheduler.blocked(), 3);
        scheduler.done(&keys("a"), false);
        assert!(release(&mut scheduler).is_empty());
        scheduler.done(&[], true);
        assert_eq!(release(&mut scheduler), ["list"]);
        scheduler.submit(task("b1", "b"));
        scheduler.submit(task("b2", "b"));
        assert_eq!(release(&mut scheduler), ["b1"]);
        assert_eq!(scheduler.blocked(), 3);
        scheduler.clear();
        assert_eq!(scheduler.blocked(), 0);
    }

    #[test]
    fn a_suspect_runs_alone() {
        let mut scheduler = Scheduler::new(10);
        scheduler.submit(task("before", "a"));
        scheduler.submit(Named("suspect", keys("s"), true));
        scheduler.submit(task("after", "b"));
        assert_eq!(release(&mut scheduler), ["before"]);
        scheduler.done(&keys("a"), false);
        assert_eq!(release(&mut scheduler), ["suspect"]);
        scheduler.done(&keys("s"), false);
        assert_eq!(release(&mut scheduler), ["after"]);
    }

    #[test]
    fn a_job_of_several_keys_waits_for_all_of_them_and_counts_once() {
        let mut scheduler = Scheduler::new(10);
        for (name, key) in [("a1", "a"), ("b1", "b"), ("abc", "abc"), ("c2", "c"), ("d1", "d"), ("cd", "cd")] {
            scheduler.submit(task(name, key));
        }
        assert_eq!(release(&mut scheduler), ["a1", "b1", "d1"]);
        assert_eq!(scheduler.blocked(), 3);
        scheduler.done(&keys("a"), false);
        assert!(release(&mut scheduler).is_empty(), "`b` is not free, and `c` is kept for it");
        scheduler.done(&keys("d"), false);
        assert!(release(&mut scheduler).is_empty(), "`c2` came before it");
        scheduler.done(&keys("b"), false);
        assert_eq!(release(&mut scheduler), ["abc"]);
        assert_eq!(scheduler.blocked(), 2);
        scheduler.put_off(&task("abc", "abc"));
        scheduler.submit(task("a2", "a"));
        assert!(release(&mut scheduler).is_empty(), "what is put off keeps all of its keys");
        scheduler.resume(task("abc", "abc"));
        assert_eq!(release(&mut scheduler), ["abc"]);
        scheduler.done(&keys("abc"), false);
        assert_eq!(release(&mut scheduler), ["a2", "c2"]);
        scheduler.done(&keys("c"), false);
        assert_eq!(release(&mut scheduler), ["cd"]);
        scheduler.submit(task("ad", "ad"));
        scheduler.clear();
        assert_eq!(scheduler.blocked(), 0);
        assert!(scheduler.busy.is_empty() && scheduler.gathering.is_empty());
    }

    #[test]
    fn jobs_that_cross_each_other_s_keys_do_not_wait_for_each_other() {
        let mut scheduler = Scheduler::new(10);
        for (name, key) in [("ab", "ab"), ("ba", "ba"), ("bc", "bc"), ("ca", "ca"), ("cb", "cb")] {
            scheduler.submit(task(name, key));
        }
        for (name, key) in [("ab", "ab"), ("ba", "ba"), ("bc", "bc"), ("ca", "ca"), ("cb", "cb")] {
            assert_eq!(release(&mut scheduler), [name]);
            scheduler.done(&keys(key), false);
        }
        assert!(scheduler.busy.is_empty() && scheduler.gathering.is_empty());
    }

    /// A task of a random run: its keys are those whose bits are set.
    #[derive(Debug)]
    struct Drawn {
        number: usize,
        mask: u8,
        keys: Keys,
        suspect: bool,
        walks: bool,
    }

    impl Schedulable for Drawn {
        fn keys(&self) -> &[KeyUse] {
            &self.keys
        }

        fn is_suspect(&self) -> bool {
            self.suspect
        }

        fn walks(&self) -> bool {
            self.walks
        }
    }

    /// A schedule, and what must hold of it whatever is done with it.
    struct Observed {
        scheduler: Scheduler<Drawn>,
        /// Of each task, by its arrival: its keys, and whether it is done.
        arrived: Vec<(u8, bool)>,
        /// Those that were not released yet.
        waiting: Vec<usize>,
        running: Vec<Drawn>,
        aside: Vec<Drawn>,
    }

    impl Observed {
        fn new(permits: usize) -> Self {
            let scheduler = Scheduler::new(permits);
            Self { scheduler, arrived: Vec::new(), waiting: Vec::new(), running: Vec::new(), aside: Vec::new() }
        }

        fn submit(&mut self, mask: u8, suspect: bool, walks: bool) {
            let number = self.arrived.len();
            let letters: String =
                ('a'..='h').zip(0..).filter(|(_, bit)| mask >> bit & 1 == 1).map(|(name, _)| name).collect();
            self.arrived.push((mask, false));
            self.waiting.push(number);
            self.scheduler.submit(Drawn { number, mask, keys: keys(&letters), suspect, walks });
        }

        /// Tells whether a task that arrived earlier and has one of these keys is not done.
        fn is_behind(&self, number: usize, mask: u8) -> bool {
            self.arrived[..number].iter().any(|(earlier, done)| !done && earlier & mask != 0)
        }

        fn next(&mut self) -> bool {
            let Some(task) = self.scheduler.next() else {
                let could = self.waiting.iter().any(|&number| !self.is_behind(number, self.arrived[number].0));
                assert!(!self.running.is_empty() || !could, "something could run and nothing does");
                return false;
            };
            assert!(!self.is_behind(task.number, task.mask), "{task:?} overtakes or overlaps");
            self.waiting.retain(|number| *number != task.number);
            self.running.push(task);
            assert!(self.running.len() <= self.scheduler.permits);
            assert!(self.running.len() == 1 || self.running.iter().all(|task| !task.suspect), "a suspect runs alone");
            let walking = self.running.iter().filter(|task| task.walks).count();
            assert!(walking <= self.scheduler.permits.div_ceil(WALKERS));
            true
        }

        fn done(&mut self, index: usize) {
            let task = self.running.swap_remove(index);
            self.arrived[task.number].1 = true;
            self.scheduler.done(&task.keys, task.walks);
        }

        fn put_off(&mut self, index: usize) {
            let task = self.running.swap_remove(index);
            self.scheduler.put_off(&task);
            self.aside.push(task);
        }

        fn resume(&mut self, index: usize) {
            let task = self.aside.swap_remove(index);
            self.scheduler.resume(task);
        }

        fn count(&self) {
            let behind = self.waiting.iter().filter(|&&number| self.is_behind(number, self.arrived[number].0)).count();
            assert_eq!(self.scheduler.blocked() - self.scheduler.walkers.len(), behind, "jobs are counted, not keys");
        }
    }

    /// What a random run does next, the number choosing among what there is.
    #[derive(Clone, Debug)]
    enum Move {
        Submit { mask: u8, suspect: bool, walks: bool },
        Next,
        Done(usize),
        PutOff(usize),
        Resume(usize),
    }

    /// Up to five of eight keys, often one and seldom none.
    fn masks() -> impl Strategy<Value = u8> {
        (proptest::collection::vec(0_u8..8, 0..=5), any::<bool>())
            .prop_map(|(bits, one)| bits.iter().take(if one { 1 } else { 5 }).fold(0, |mask, bit| mask | 1 << bit))
    }

    fn moves() -> impl Strategy<Value = Move> {
        let submit = (masks(), 0..20, 0..10).prop_map(|(mask, suspect, walks)| Move::Submit {
            mask,
            suspect: suspect == 0,
            walks: walks == 0,
        });
        prop_oneof![
            4 => submit,
            4 => Just(Move::Next),
            3 => any::<usize>().prop_map(Move::Done),
            1 => any::<usize>().prop_map(Move::PutOff),
            1 => any::<usize>().prop_map(Move::Resume),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]
        #[test]
        fn on_each_key_jobs_run_in_their_order_and_all_of_them_end(
            permits in 1_usize..9, moves in proptest::collection::vec(moves(), 1..80)
        ) {
            let mut run = Observed::new(permits);
            for next in moves {
                match next {
                    Move::Submit { mask, suspect, walks } => run.submit(mask, suspect, walks),
                    Move::Next => drop(run.next()),
                    Move::Done(index) if !run.running.is_empty() => run.done(index % run.running.len()),
                    Move::PutOff(index) if !run.running.is_empty() => run.put_off(index % run.running.len()),
                    Move::Resume(index) if !run.aside.is_empty() => run.resume(index % run.aside.len()),
                    Move::Done(_) | Move::PutOff(_) | Move::Resume(_) => {}
                }
                run.count();
            }
            while !run.aside.is_empty() {
                run.resume(0);
            }
            while run.arrived.iter().any(|(_, done)| !done) {
                while run.next() {}
                prop_assert!(!run.running.is_empty(), "nothing goes on");
                run.done(0);
                run.count();
            }
            prop_assert!(run.scheduler.busy.is_empty() && run.scheduler.gathering.is_empty(), "free keys cost nothing");
            prop_assert_eq!((run.scheduler.running, run.scheduler.blocked()), (0, 0));
        }
    }
}
