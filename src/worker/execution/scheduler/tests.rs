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

    fn share(&self) -> Share {
        match self.0 {
            "list" => Share::Scan,
            "large" => Share::Large,
            _ => Share::Small,
        }
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
    scheduler.done(&[], Share::Scan);
    scheduler.done(&keys("a"), Share::Small);
    assert_eq!(release(&mut scheduler), ["a2"]);
    scheduler.done(&keys("b"), Share::Small);
    scheduler.done(&keys("a"), Share::Small);
    assert_eq!(release(&mut scheduler), ["a3"]);
    scheduler.done(&keys("a"), Share::Small);
    assert_eq!(scheduler.running.sum(), 0);
    assert!(scheduler.busy.is_empty(), "free keys cost nothing");
}

#[test]
fn permits_bound_what_runs() {
    let mut scheduler = Scheduler::new(2);
    for (name, key) in [("a", "a"), ("b", "b"), ("c", "c")] {
        scheduler.submit(task(name, key));
    }
    assert_eq!(release(&mut scheduler), ["a", "b"]);
    scheduler.done(&keys("a"), Share::Small);
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
    scheduler.done(&keys("b"), Share::Small);
    assert_eq!(release(&mut scheduler), ["a1"]);
    scheduler.done(&keys("a"), Share::Small);
    assert_eq!(release(&mut scheduler), ["suspect"]);
    scheduler.put_off(&task("suspect", "s"));
    assert_eq!(release(&mut scheduler), ["a2"], "a suspect that does not run holds up nobody");
    assert_eq!(scheduler.running.sum(), 1);
}

#[test]
fn those_that_walk_leave_permits_to_others() {
    let mut scheduler = Scheduler::new(8);
    (0..5).for_each(|_| scheduler.submit(Named("list", Keys::None, false)));
    scheduler.submit(task("a", "a"));
    assert_eq!(release(&mut scheduler), ["list", "list", "a"]);
    assert_eq!(scheduler.blocked(), 3);
    scheduler.done(&keys("a"), Share::Small);
    assert!(release(&mut scheduler).is_empty());
    scheduler.done(&[], Share::Scan);
    assert_eq!(release(&mut scheduler), ["list"]);
    scheduler.submit(task("b1", "b"));
    scheduler.submit(task("b2", "b"));
    assert_eq!(release(&mut scheduler), ["b1"]);
    assert_eq!(scheduler.blocked(), 3);
    scheduler.clear();
    assert_eq!(scheduler.blocked(), 0);
}

#[test]
fn large_values_leave_permits_to_small_ones() {
    let mut scheduler = Scheduler::new(8);
    for name in ["large", "large", "list", "large", "list", "large", "list", "large"] {
        scheduler.submit(Named(name, Keys::None, false));
    }
    assert_eq!(release(&mut scheduler), ["large", "large", "list", "large"], "half of the permits, listings included");
    assert_eq!(scheduler.blocked(), 4);
    for (name, key) in [("a", "a"), ("b", "b"), ("c", "c"), ("d", "d"), ("e", "e")] {
        scheduler.submit(task(name, key));
    }
    assert_eq!(release(&mut scheduler), ["a", "b", "c", "d"]);
    assert_eq!(scheduler.blocked(), 4, "who waits for any permit is not blocked by its kind");
    scheduler.done(&[], Share::Large);
    assert_eq!(release(&mut scheduler), ["list"], "the order of arrival holds among what has room");
    scheduler.done(&[], Share::Large);
    assert_eq!(release(&mut scheduler), ["large"], "listings have no more than a quarter");
    scheduler.done(&[], Share::Scan);
    assert_eq!(release(&mut scheduler), ["list"]);
}

#[test]
fn with_one_permit_every_share_runs_in_order() {
    let mut scheduler = Scheduler::new(1);
    for name in ["large", "list", "small", "large", "list"] {
        scheduler.submit(Named(name, Keys::None, false));
    }
    for name in ["large", "list", "small", "large", "list"] {
        let task = scheduler.next().unwrap();
        assert_eq!(task.0, name);
        assert!(scheduler.next().is_none());
        scheduler.done(&[], task.share());
    }
    assert_eq!(scheduler.running.sum(), 0);
}

#[test]
fn what_is_put_off_keeps_its_place_before_others() {
    let mut scheduler = Scheduler::new(2);
    for name in ["large", "large", "small"] {
        scheduler.submit(Named(name, Keys::None, false));
    }
    let large = scheduler.next().unwrap();
    scheduler.put_off(&large);
    assert_eq!(release(&mut scheduler), ["large", "small"]);
    assert!(!scheduler.may_run(&large), "its share is used up");
    scheduler.resume(large);
    scheduler.submit(task("a", "a"));
    scheduler.done(&[], Share::Small);
    assert_eq!(release(&mut scheduler), ["a"]);
    scheduler.done(&[], Share::Large);
    assert_eq!(release(&mut scheduler), ["large"]);
}

#[test]
fn a_hot_key_delays_another_key_by_one_command() {
    for permits in 1..4 {
        let mut scheduler = Scheduler::new(permits);
        (0..1_000).for_each(|_| scheduler.submit(task("hot", "h")));
        assert_eq!(release(&mut scheduler), ["hot"]);
        for _ in 0..100 {
            scheduler.submit(task("other", "o"));
            let mut hot = 0;
            loop {
                let released = release(&mut scheduler);
                hot += released.iter().filter(|name| **name == "hot").count();
                if released.contains(&"other") {
                    break;
                }
                scheduler.done(&keys("h"), Share::Small);
            }
            assert!(hot <= 1, "{hot} with {permits}");
            scheduler.done(&keys("o"), Share::Small);
        }
    }
}

#[test]
fn a_suspect_runs_alone() {
    let mut scheduler = Scheduler::new(10);
    scheduler.submit(task("before", "a"));
    scheduler.submit(Named("suspect", keys("s"), true));
    scheduler.submit(task("after", "b"));
    assert_eq!(release(&mut scheduler), ["before"]);
    scheduler.done(&keys("a"), Share::Small);
    assert_eq!(release(&mut scheduler), ["suspect"]);
    scheduler.done(&keys("s"), Share::Small);
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
    scheduler.done(&keys("a"), Share::Small);
    assert!(release(&mut scheduler).is_empty(), "`b` is not free, and `c` is kept for it");
    scheduler.done(&keys("d"), Share::Small);
    assert!(release(&mut scheduler).is_empty(), "`c2` came before it");
    scheduler.done(&keys("b"), Share::Small);
    assert_eq!(release(&mut scheduler), ["abc"]);
    assert_eq!(scheduler.blocked(), 2);
    scheduler.put_off(&task("abc", "abc"));
    scheduler.submit(task("a2", "a"));
    assert!(release(&mut scheduler).is_empty(), "what is put off keeps all of its keys");
    scheduler.resume(task("abc", "abc"));
    assert_eq!(release(&mut scheduler), ["abc"]);
    scheduler.done(&keys("abc"), Share::Small);
    assert_eq!(release(&mut scheduler), ["a2", "c2"]);
    scheduler.done(&keys("c"), Share::Small);
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
        scheduler.done(&keys(key), Share::Small);
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
    share: Share,
}

impl Schedulable for Drawn {
    fn keys(&self) -> &[KeyUse] {
        &self.keys
    }

    fn is_suspect(&self) -> bool {
        self.suspect
    }

    fn share(&self) -> Share {
        self.share
    }
}

/// A schedule, and what must hold of it whatever is done with it.
struct Observed {
    scheduler: Scheduler<Drawn>,
    /// Of each task, by its arrival: its keys, and whether it is done.
    arrived: Vec<(u8, bool)>,
    /// Whether one of them is suspect, and its share.
    kinds: Vec<(bool, Share)>,
    /// Those that are not released, or were put off and taken in again.
    waiting: Vec<usize>,
    running: Vec<Drawn>,
    aside: Vec<Drawn>,
}

impl Observed {
    fn new(permits: usize) -> Self {
        let scheduler = Scheduler::new(permits);
        Self {
            scheduler,
            arrived: Vec::new(),
            kinds: Vec::new(),
            waiting: Vec::new(),
            running: Vec::new(),
            aside: Vec::new(),
        }
    }

    fn submit(&mut self, mask: u8, suspect: bool, share: Share) {
        let number = self.arrived.len();
        let letters: String =
            ('a'..='h').zip(0..).filter(|(_, bit)| mask >> bit & 1 == 1).map(|(name, _)| name).collect();
        self.arrived.push((mask, false));
        self.kinds.push((suspect, share));
        self.waiting.push(number);
        self.scheduler.submit(Drawn { number, mask, keys: keys(&letters), suspect, share });
    }

    /// Tells whether a task that arrived earlier and has one of these keys is not done.
    fn is_behind(&self, number: usize, mask: u8) -> bool {
        self.arrived[..number].iter().any(|(earlier, done)| !done && earlier & mask != 0)
    }

    fn next(&mut self) -> bool {
        let Some(task) = self.scheduler.next() else {
            self.rests();
            return false;
        };
        assert!(!self.is_behind(task.number, task.mask), "{task:?} overtakes or overlaps");
        self.waiting.retain(|number| *number != task.number);
        self.running.push(task);
        assert!(self.running.len() <= self.scheduler.permits);
        assert!(self.running.len() == 1 || self.running.iter().all(|task| !task.suspect), "a suspect runs alone");
        for share in Share::ALL {
            assert!(self.runs(share) <= share.most(self.scheduler.permits), "{share:?}");
        }
        true
    }

    /// Counts what runs of a share, and of those that are part of it.
    fn runs(&self, share: Share) -> usize {
        self.running.iter().filter(|task| task.share as usize >= share as usize).count()
    }

    /// Sees that nothing could run when nothing is released.
    fn rests(&self) {
        let permits = self.scheduler.permits;
        if self.running.len() == permits || self.running.iter().any(|task| task.suspect) {
            return;
        }
        let free: Vec<usize> =
            self.waiting.iter().copied().filter(|&number| !self.is_behind(number, self.arrived[number].0)).collect();
        if !self.running.is_empty() && free.iter().any(|number| self.kinds[*number].0) {
            // A suspect waits until nothing runs.
            return;
        }
        let has_room = |share: Share| Share::ALL[..=share as usize].iter().all(|it| self.runs(*it) < it.most(permits));
        assert!(!free.iter().any(|number| has_room(self.kinds[*number].1)), "something could run and does not");
        assert!(permits == 1 || self.runs(Share::Large) < permits, "a small one finds a permit");
    }

    fn done(&mut self, index: usize) {
        let task = self.running.swap_remove(index);
        self.arrived[task.number].1 = true;
        self.scheduler.done(&task.keys, task.share);
    }

    fn put_off(&mut self, index: usize) {
        let task = self.running.swap_remove(index);
        self.scheduler.put_off(&task);
        self.aside.push(task);
    }

    fn resume(&mut self, index: usize) {
        let task = self.aside.swap_remove(index);
        self.waiting.push(task.number);
        self.scheduler.resume(task);
    }

    fn count(&self) {
        let behind = self.waiting.iter().filter(|&&number| self.is_behind(number, self.arrived[number].0)).count();
        assert_eq!(self.scheduler.blocked() - self.scheduler.beyond_share(), behind, "jobs are counted, not keys");
    }
}

/// What a random run does next, the number choosing among what there is.
#[derive(Clone, Debug)]
enum Move {
    Submit { mask: u8, suspect: bool, share: Share },
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
    let share = prop_oneof![6 => Just(Share::Small), 3 => Just(Share::Large), 1 => Just(Share::Scan)];
    let submit =
        (masks(), 0..20, share).prop_map(|(mask, suspect, share)| Move::Submit { mask, suspect: suspect == 0, share });
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
                Move::Submit { mask, suspect, share } => run.submit(mask, suspect, share),
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
        prop_assert_eq!((run.scheduler.running.sum(), run.scheduler.blocked()), (0, 0));
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// Some keys have many commands that wait. Of each of them, one begins at most before that of a key which comes now.
    #[test]
    fn keys_are_served_in_turn(
        permits in 1_usize..9, hot in 1_usize..8, ends in proptest::collection::vec(any::<usize>(), 0..60)
    ) {
        let mut scheduler = Scheduler::new(permits);
        let mut running: Vec<Drawn> = Vec::new();
        let drawn = |number: usize, letter: usize| {
            let letter = char::from(b'a' + u8::try_from(letter).unwrap());
            Drawn { number, mask: 0, keys: keys(&letter.to_string()), suspect: false, share: Share::Small }
        };
        (0..200).for_each(|number| scheduler.submit(drawn(number % hot, number % hot)));
        for end in ends {
            running.extend(std::iter::from_fn(|| scheduler.next()));
            scheduler.done(&running.swap_remove(end % running.len()).keys, Share::Small);
        }
        scheduler.submit(drawn(hot, hot));
        let mut begun = vec![0; hot];
        'waits: loop {
            while let Some(task) = scheduler.next() {
                if task.number == hot {
                    break 'waits;
                }
                begun[task.number] += 1;
                running.push(task);
            }
            scheduler.done(&running.swap_remove(0).keys, Share::Small);
        }
        prop_assert!(begun.iter().all(|count| *count <= 1), "{:?}", begun);
    }
}
