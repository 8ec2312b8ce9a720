//! The queues that belong to the worker itself: whether they take what is sent there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::broker::{BrokerSession, DEAD_QUEUE, Error, ErrorKind, METRICS_QUEUE, Presence};
use crate::telemetry::{Component, ComponentState, Readiness};

/// The number of events that the queue of events holds; beyond that the oldest go.
const METRICS_LENGTH: u32 = 100_000;
/// How long a queue may be back before that is noticed. A look costs one channel.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long events are not asked for after they came back: an operator who takes the queue away does not want them.
const UNHEARD: Duration = Duration::from_secs(1);

/// A queue of the worker's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::worker) enum OwnQueue {
    /// `filestorage.dead`, with the copies of messages that cannot be run.
    Dead,
    /// `filestorage.metrics`, with the events.
    Events,
}

impl OwnQueue {
    /// Returns the name in the broker.
    pub(in crate::worker) const fn name(self) -> &'static str {
        match self {
            Self::Dead => DEAD_QUEUE,
            Self::Events => METRICS_QUEUE,
        }
    }

    const fn component(self) -> Component {
        match self {
            Self::Dead => Component::DeadQueue,
            Self::Events => Component::Events,
        }
    }

    /// Looks for the queue, and makes it where it is missing.
    ///
    /// # Errors
    ///
    /// Whatever the broker answers.
    pub(in crate::worker) async fn ensure(self, session: &dyn BrokerSession) -> Result<Presence, Error> {
        match self {
            Self::Dead => session.ensure_dead().await,
            Self::Events => session.ensure_metrics(METRICS_LENGTH).await,
        }
    }
}

/// How a queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is there, as far as anybody knows.
    There,
    /// It is down or missing, and looked for again.
    Away,
    /// It took nothing when something was last sent there, whatever a look at it says.
    TakesNothing,
    /// Nobody is bound to the exchange of events; until then events that come back are not asked about.
    Unheard(Instant),
    /// The broker refuses what is sent there, until the next session.
    Refused,
}

/// What the worker knows of its own queues; readiness is told of it, and never asked.
#[derive(Debug)]
pub(in crate::worker) struct OwnQueues {
    readiness: Readiness,
    standings: BTreeMap<OwnQueue, Standing>,
}

impl OwnQueues {
    /// Knows nothing yet: all queues are taken for there.
    pub(in crate::worker) const fn new(readiness: Readiness) -> Self {
        Self { readiness, standings: BTreeMap::new() }
    }

    fn standing(&self, queue: OwnQueue) -> Standing {
        self.standings.get(&queue).copied().unwrap_or(Standing::There)
    }

    fn set(&mut self, queue: OwnQueue, standing: Standing, condition: ComponentState) {
        self.standings.insert(queue, standing);
        self.readiness.set(queue.component(), condition);
    }

    /// Looks for a queue at the beginning of a session, of which nothing earlier counts; without the queue commands go on.
    ///
    /// # Errors
    ///
    /// The session is lost.
    pub(in crate::worker) async fn begin(&mut self, queue: OwnQueue, session: &dyn BrokerSession) -> Result<(), Error> {
        self.standings.remove(&queue);
        self.looked(queue, queue.ensure(session).await)
    }

    /// Takes in what a look for a queue found. A queue that takes nothing may well be there.
    ///
    /// # Errors
    ///
    /// The session is lost.
    pub(in crate::worker) fn looked(&mut self, queue: OwnQueue, found: Result<Presence, Error>) -> Result<(), Error> {
        if !matches!(self.standing(queue), Standing::There | Standing::Away) {
            return Ok(());
        }
        let words = match found {
            Ok(Presence::Present | Presence::Created) => {
                self.set(queue, Standing::There, ComponentState::Ready);
                return Ok(());
            }
            Ok(Presence::Down(words)) => format!("queue is down: {words}"),
            Ok(Presence::Denied(words)) => format!("queue is missing: {words}"),
            Err(error) if matches!(error.kind(), ErrorKind::Lost | ErrorKind::Unreachable) => return Err(error),
            Err(error) => format!("queue cannot be made: {error}"),
        };
        self.set(queue, Standing::Away, ComponentState::Degraded(words));
        Ok(())
    }

    /// Notes that something came back from a queue that is down or missing, in the broker's words, and waits for it.
    pub(in crate::worker) fn away(&mut self, queue: OwnQueue, words: &str) {
        self.set(queue, Standing::Away, ComponentState::Degraded(format!("{}: {words}; held back", queue.name())));
    }

    /// Notes that a queue took something not, for this reason; what was sent there is held back.
    pub(in crate::worker) fn hold_back(&mut self, queue: OwnQueue, reason: &str) {
        if self.standing(queue) == Standing::Refused {
            return;
        }
        let condition = ComponentState::Degraded(format!("{}: {reason}; held back", queue.name()));
        self.set(queue, Standing::TakesNothing, condition);
    }

    /// Notes that a queue has taken what was sent there. It says nothing of another queue.
    pub(in crate::worker) fn taken(&mut self, queue: OwnQueue) {
        if matches!(self.standing(queue), Standing::TakesNothing | Standing::Away) {
            self.set(queue, Standing::There, ComponentState::Ready);
        }
    }

    /// Notes that nothing was sent for long to a queue that took nothing, so that nobody knows how it stands.
    pub(in crate::worker) fn forget(&mut self, queue: OwnQueue) {
        if self.standing(queue) == Standing::TakesNothing {
            self.set(queue, Standing::There, ComponentState::Ready);
        }
    }

    /// Notes that events came back though their queue is not down: nobody is bound.
    pub(in crate::worker) fn unheard(&mut self) {
        let why = format!("nobody is bound to {}: events go to nobody", crate::worker::events::EXCHANGE);
        self.set(OwnQueue::Events, Standing::Unheard(Instant::now() + UNHEARD), ComponentState::Degraded(why));
    }

    /// Tells whether events that come back are known to have no listener, so that nobody needs to look.
    pub(in crate::worker) fn is_unheard(&self) -> bool {
        matches!(self.standing(OwnQueue::Events), Standing::Unheard(until) if Instant::now() < until)
    }

    /// Notes that an event arrived.
    pub(in crate::worker) fn heard(&mut self) {
        if matches!(self.standing(OwnQueue::Events), Standing::Unheard(_)) {
            self.set(OwnQueue::Events, Standing::There, ComponentState::Ready);
        }
    }

    /// Notes that the broker refuses events, in its words: they are off until the next session.
    pub(in crate::worker) fn refuse_events(&mut self, words: &str) {
        let why = format!("the broker refuses events: {words}; they are off until the next session");
        self.set(OwnQueue::Events, Standing::Refused, ComponentState::Degraded(why));
    }

    /// Tells whether the broker takes events in this session.
    pub(in crate::worker) fn takes_events(&self) -> bool {
        self.standing(OwnQueue::Events) != Standing::Refused
    }

    /// Returns the queues that are to be looked for again: nothing else may ever ask for them.
    pub(in crate::worker) fn away_now(&self) -> Vec<OwnQueue> {
        let away = self.standings.iter().filter(|(_, standing)| **standing == Standing::Away);
        away.map(|(queue, _)| *queue).collect()
    }
}

/// What looks for queues found.
pub(in crate::worker) type Looked = Vec<(OwnQueue, Result<Presence, Error>)>;

/// Looks for queues again, after a while.
pub(in crate::worker) async fn look_again(session: Arc<dyn BrokerSession>, queues: Vec<OwnQueue>) -> Looked {
    tokio::time::sleep(LOOK_AGAIN).await;
    let mut looked = Vec::with_capacity(queues.len());
    for queue in queues {
        looked.push((queue, queue.ensure(&*session).await));
    }
    looked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_queues() -> (OwnQueues, Readiness) {
        let readiness = Readiness::new(&[]);
        (OwnQueues::new(readiness.clone()), readiness)
    }

    fn is_degraded(readiness: &Readiness, component: Component) -> bool {
        matches!(readiness.conditions().get(&component), Some(ComponentState::Degraded(_)))
    }

    fn down() -> Result<Presence, Error> {
        Ok(Presence::Down("node down".to_owned()))
    }

    #[test]
    fn what_one_queue_took_says_nothing_of_the_other() {
        let (mut queues, readiness) = own_queues();
        queues.hold_back(OwnQueue::Dead, "full");
        queues.hold_back(OwnQueue::Events, "full");
        queues.taken(OwnQueue::Events);
        assert!(is_degraded(&readiness, Component::DeadQueue));
        assert_eq!(readiness.conditions()[&Component::Events], ComponentState::Ready);
        queues.taken(OwnQueue::Dead);
        assert_eq!(readiness.conditions()[&Component::DeadQueue], ComponentState::Ready);
    }

    #[test]
    fn a_queue_that_is_away_is_looked_for_until_it_is_there() {
        let (mut queues, readiness) = own_queues();
        assert_eq!(queues.away_now(), []);
        for found in [down(), Ok(Presence::Denied("configure".to_owned()))] {
            queues.looked(OwnQueue::Dead, found).unwrap();
            assert_eq!(queues.away_now(), [OwnQueue::Dead]);
            assert!(is_degraded(&readiness, Component::DeadQueue));
        }
        // What others tell readiness changes nothing of it.
        readiness.set(Component::DeadQueue, ComponentState::Ready);
        readiness.set(Component::Events, ComponentState::Degraded("by somebody else".to_owned()));
        assert_eq!(queues.away_now(), [OwnQueue::Dead]);
        queues.looked(OwnQueue::Dead, Ok(Presence::Created)).unwrap();
        assert_eq!(queues.away_now(), []);
        queues.away(OwnQueue::Events, "node down");
        assert_eq!(queues.away_now(), [OwnQueue::Events]);
        queues.taken(OwnQueue::Events);
        assert_eq!(queues.away_now(), []);
        assert!(queues.looked(OwnQueue::Dead, Err(Error::lost("cut"))).is_err());
    }

    #[test]
    fn a_look_does_not_say_that_a_full_queue_takes_anything() {
        let (mut queues, readiness) = own_queues();
        queues.looked(OwnQueue::Dead, down()).unwrap();
        // While the look is under way, something is sent and not taken.
        queues.hold_back(OwnQueue::Dead, "full");
        queues.looked(OwnQueue::Dead, Ok(Presence::Present)).unwrap();
        assert!(is_degraded(&readiness, Component::DeadQueue));
        assert_eq!(queues.away_now(), []);
    }

    #[test]
    fn events_that_nobody_wants_are_no_matter_of_a_queue_that_comes_back() {
        let (mut queues, readiness) = own_queues();
        queues.unheard();
        assert!(queues.is_unheard() && queues.away_now().is_empty() && queues.takes_events());
        queues.taken(OwnQueue::Events);
        assert!(is_degraded(&readiness, Component::Events), "nothing was held back");
        queues.heard();
        assert!(!queues.is_unheard() && !is_degraded(&readiness, Component::Events));
        queues.refuse_events("403");
        assert!(!queues.takes_events() && queues.away_now().is_empty());
        queues.heard();
        assert!(!queues.takes_events() && is_degraded(&readiness, Component::Events));
    }
}
