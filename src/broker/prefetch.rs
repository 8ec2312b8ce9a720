//! How many deliveries of a queue may be unsettled, by the size of those that came.

use std::time::{Duration, Instant};

/// Deliveries whose size must be known before more are asked for.
const SEEN: u32 = 8;
/// Time between two changes: each is a consumer of its own. What has become too much is changed at once.
const REST: Duration = Duration::from_secs(1);
/// Deliveries beyond the count it may grow by while so many only wait for others; none of them is large.
const STRETCH: usize = 4096;

/// Follows the sizes of one queue's deliveries and says how many of them may be unsettled.
#[derive(Clone, Debug)]
pub(super) struct Prefetch {
    current: u16,
    bound: Option<Bound>,
    /// Bytes of one delivery on average; what is larger counts more.
    mean: f64,
    seen: u32,
    changed: Option<Instant>,
}

/// What a prefetch that adapts is bounded by.
#[derive(Clone, Copy, Debug)]
struct Bound {
    /// Deliveries.
    full: u16,
    /// Bytes of all of them together.
    bytes: u64,
}

impl Prefetch {
    /// Starts with so many; it stays so until it is bounded.
    pub(super) const fn new(current: u16) -> Self {
        Self { current, bound: None, mean: 0.0, seen: 0, changed: None }
    }

    /// Lets it adapt within so many deliveries and so many bytes.
    pub(super) const fn bound(&mut self, full: u16, bytes: u64) {
        self.bound = Some(Bound { full, bytes });
    }

    /// Returns the present count.
    pub(super) const fn current(&self) -> u16 {
        self.current
    }

    /// Notes the size of a delivery.
    pub(super) fn note(&mut self, bytes: usize) {
        let bytes = bytes as f64;
        let weight = if self.seen == 0 {
            1.0
        } else if bytes > self.mean {
            0.25
        } else {
            1.0 / 32.0
        };
        self.mean += (bytes - self.mean) * weight;
        self.seen = self.seen.saturating_add(1);
    }

    /// Returns the count to change to, if the present one is far from right; `blocked` deliveries only wait for others and shall
    /// not keep further ones from being seen.
    pub(super) fn change(&mut self, blocked: usize) -> Option<u16> {
        let Bound { full, bytes } = self.bound?;
        let most = usize::from(full) + blocked.min(STRETCH);
        let by_bytes = (bytes as f64 / self.mean.max(1.0)) as usize;
        let wanted = u16::try_from(most.min(by_bytes)).unwrap_or(u16::MAX).max(1);
        let shrinks = wanted <= self.current / 2;
        let grows = self.seen >= SEEN.min(u32::from(self.current))
            && (wanted / 2 >= self.current
                || wanted >= self.current.saturating_add((full / 2).max(1))
                || self.current < full && wanted >= full)
            && wanted > self.current;
        let too_much = shrinks && by_bytes < usize::from(self.current);
        let rests = self.changed.is_some_and(|changed| changed.elapsed() < REST);
        if !(too_much || (shrinks || grows) && !rests) {
            return None;
        }
        self.current = wanted;
        self.changed = Some(Instant::now());
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefetch() -> Prefetch {
        let mut prefetch = Prefetch::new(16);
        prefetch.bound(512, 64 << 20);
        prefetch
    }

    #[test]
    fn what_waits_behind_a_hot_key_stretches_it_step_by_step() {
        let mut prefetch = prefetch();
        for _ in 0..600 {
            prefetch.note(200);
        }
        assert_eq!(prefetch.change(0), Some(512));
        prefetch.changed = None;
        // All but one of those that were taken in wait for the one.
        assert_eq!(prefetch.change(511), Some(1023));
        for _ in 0..600 {
            prefetch.note(200);
        }
        prefetch.changed = None;
        assert_eq!(prefetch.change(1022), Some(1534));
    }

    #[test]
    fn small_ones_reach_the_full_count_at_once_and_large_ones_take_it_back_at_once() {
        let mut prefetch = prefetch();
        (0..7).for_each(|_| prefetch.note(200));
        assert_eq!(prefetch.change(0), None, "too few to tell");
        prefetch.note(200);
        assert_eq!(prefetch.change(0), Some(512));
        assert_eq!(prefetch.change(0), None);
        prefetch.note(8 << 20);
        assert_eq!(prefetch.change(0), Some(31));
        (0..20).for_each(|_| prefetch.note(8 << 20));
        assert_eq!(prefetch.change(0), Some(8));
        (0..1000).for_each(|_| prefetch.note(200 << 20));
        assert_eq!(prefetch.change(0), Some(1), "never none");
    }

    #[test]
    fn what_waits_for_others_makes_room_within_bounds() {
        let mut prefetch = prefetch();
        (0..8).for_each(|_| prefetch.note(200));
        assert_eq!(prefetch.change(100_000), Some(4608));
        assert_eq!(prefetch.change(0), None, "not right after");
        prefetch.changed = None;
        assert_eq!(prefetch.change(0), Some(512));
        let mut one = Prefetch::new(1);
        one.bound(1, 1 << 30);
        (0..8).for_each(|_| one.note(1));
        assert_eq!(one.change(0), None);
        assert_eq!(one.change(5), Some(6));
    }

    #[test]
    fn a_prefetch_changes_once_a_second() {
        let mut prefetch = prefetch();
        (0..8).for_each(|_| prefetch.note(200));
        assert_eq!(prefetch.change(100_000), Some(4608));
        for (milliseconds, change) in [(900, None), (1_000, Some(512))] {
            prefetch.changed = Instant::now().checked_sub(Duration::from_millis(milliseconds));
            assert_eq!(prefetch.change(0), change, "{milliseconds}");
        }
    }

    #[test]
    fn one_that_is_not_bounded_stays() {
        let mut prefetch = Prefetch::new(3);
        (0..100).for_each(|_| prefetch.note(1 << 30));
        assert_eq!(prefetch.change(9), None);
    }
}
