//! What the broker's word about one publication means, by the role of the publication.

use crate::broker::{Confirmation, PublishError};
use crate::celery::message::{Address, Publication};
use crate::worker::delivery::destinations::Fault;
use crate::worker::delivery::role::Role;

/// How often a follow-up that comes back is tried again with its queue in place.
pub(in crate::worker) const MAX_TRIES: u8 = 3;

/// What becomes of one publication that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Fate {
    /// It is owed no more: its queue has it, or nobody waits for it.
    Taken,
    /// An event came back: perhaps nobody wants it.
    Unheard,
    /// Its address took it not, and may take it later.
    NotTaken(Fault, String),
    /// Nobody will ever take it; the broker's words.
    Refused(String),
    /// The broker said nothing in time, and so the session counts as lost, with the reason.
    Doubted(String),
    /// The session is lost, with the reason.
    Lost(String),
}

/// What is known of a publication beside the broker's word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) role: Role,
    /// It tries an address that takes nothing, or the broker confirmed something else meanwhile: its silence says nothing of the
    /// broker.
    pub(super) is_alone: bool,
    /// The broker of the session took it, not a store that keeps results elsewhere.
    pub(super) is_over_broker: bool,
    /// How often it came back.
    pub(super) tries: u8,
}

impl Fate {
    /// Reads the broker's word, and returns the publication where it may be sent again: the one that was kept, or that comes back.
    pub(super) fn of(
        answer: Result<Confirmation, PublishError>,
        sent: Sent,
        kept: Option<Box<Publication>>,
    ) -> (Self, Option<Box<Publication>>) {
        let Sent { role, is_alone, is_over_broker, tries } = sent;
        match answer {
            Ok(Confirmation::Routed) => (Self::Taken, None),
            Ok(Confirmation::Returned { .. }) => {
                (Self::of_returned(role, kept.as_ref().map(|kept| &kept.address), tries), kept)
            }
            Err(PublishError::Nacked(publication)) => {
                (Self::NotTaken(Fault::Full, format!("{role:?}: its queue takes nothing now")), Some(publication))
            }
            // Without its dead copy nothing may be lost: it is tried again for ever.
            Err(PublishError::Refused { code, text }) if role == Role::Dead => {
                (Self::NotTaken(Fault::Full, format!("the dead copy is refused: {code} {text}")), kept)
            }
            // Only for want of the right to answer at all: whoever has it shall find the command.
            Err(PublishError::Refused { code: 403, text }) if role == Role::Reply && is_over_broker => {
                (Self::Lost(text), None)
            }
            Err(PublishError::Refused { code, text }) => (Self::Refused(format!("{code} {text}")), kept),
            // The whole broker is in doubt: another session finds out which address is silent.
            Err(PublishError::Unconfirmed(publication)) if !is_alone && is_over_broker => {
                (Self::Doubted(unconfirmed(&publication.address)), Some(publication))
            }
            Err(PublishError::Unconfirmed(publication)) if !is_over_broker => {
                let words = format!("{role:?}: the store of results did not confirm");
                (Self::NotTaken(Fault::Away, words), Some(publication))
            }
            Err(PublishError::Unconfirmed(publication)) => {
                let words = format!("{role:?}: {}", unconfirmed(&publication.address));
                (Self::NotTaken(Fault::Silent, words), Some(publication))
            }
            Err(PublishError::Lost(reason)) => (Self::Lost(reason), None),
        }
    }

    fn of_returned(role: Role, address: Option<&Address>, tries: u8) -> Self {
        let is_named = address.is_some_and(|address| !address.exchange.is_empty());
        match role {
            // Nobody waits for it any more.
            Role::Reply | Role::Rest | Role::Notice => Self::Taken,
            Role::Event => Self::Unheard,
            // The next session makes the delay queue again, and the message comes back through its delivery.
            Role::Delay => Self::Lost("a delay queue is gone".to_owned()),
            // A queue of that name would not be bound to a named exchange.
            Role::FollowUp if is_named || tries >= MAX_TRIES => {
                let (exchange, routing_key) =
                    address.map_or(("", ""), |address| (&address.exchange, &address.routing_key));
                Self::Refused(format!("312 NO_ROUTE - exchange {exchange:?} routes {routing_key:?} to no queue"))
            }
            Role::FollowUp | Role::Part | Role::Dead => {
                Self::NotTaken(Fault::Missing, format!("{role:?}: no queue is there"))
            }
        }
    }
}

fn unconfirmed(Address { exchange, routing_key }: &Address) -> String {
    format!("the broker did not confirm what went to exchange '{exchange}' with routing key '{routing_key}'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::message::Message;

    const ROLES: [Role; 8] =
        [Role::FollowUp, Role::Reply, Role::Rest, Role::Part, Role::Notice, Role::Dead, Role::Event, Role::Delay];

    fn sent(role: Role) -> Sent {
        Sent { role, is_alone: false, is_over_broker: true, tries: 0 }
    }

    fn publication() -> Box<Publication> {
        Box::new(Publication { address: Address::queue("q"), message: Message::default() })
    }

    fn fate(answer: Result<Confirmation, PublishError>, sent: Sent) -> Fate {
        Fate::of(answer, sent, Some(publication())).0
    }

    fn is_lost(fate: &Fate) -> bool {
        matches!(fate, Fate::Lost(_))
    }

    #[test]
    fn what_is_routed_is_owed_no_more() {
        for role in ROLES {
            assert_eq!(fate(Ok(Confirmation::Routed), sent(role)), Fate::Taken);
        }
    }

    #[test]
    fn what_comes_back_is_looked_after_by_its_role() {
        let returned = || Ok(Confirmation::Returned { code: 312, text: "NO_ROUTE".into() });
        for role in [Role::Reply, Role::Rest, Role::Notice] {
            assert_eq!(fate(returned(), sent(role)), Fate::Taken, "nobody waits for it");
        }
        for role in [Role::FollowUp, Role::Dead] {
            assert!(matches!(fate(returned(), sent(role)), Fate::NotTaken(Fault::Missing, _)));
        }
        assert_eq!(fate(returned(), sent(Role::Event)), Fate::Unheard);
        assert!(is_lost(&fate(returned(), sent(Role::Delay))));
        let tired = Sent { tries: MAX_TRIES, ..sent(Role::FollowUp) };
        assert!(matches!(fate(returned(), tired), Fate::Refused(_)));
        assert!(matches!(fate(returned(), Sent { role: Role::Dead, ..tired }), Fate::NotTaken(..)));
        let named = Address { exchange: "e".into(), routing_key: "k".into() };
        let named = Box::new(Publication { address: named, message: Message::default() });
        assert!(matches!(Fate::of(returned(), sent(Role::FollowUp), Some(named)).0, Fate::Refused(_)));
    }

    #[test]
    fn what_is_nacked_is_not_taken() {
        for role in ROLES {
            let (fate, back) = Fate::of(Err(PublishError::Nacked(publication())), sent(role), None);
            assert!(matches!(fate, Fate::NotTaken(Fault::Full, _)) && back.is_some());
        }
    }

    #[test]
    fn what_is_refused_is_refused_but_for_the_dead_copy_and_the_right_to_answer() {
        let refused = |code| Err(PublishError::Refused { code, text: "no".into() });
        for role in ROLES {
            let fate = fate(refused(406), sent(role));
            if role == Role::Dead {
                assert!(matches!(fate, Fate::NotTaken(..)), "nothing may be lost");
            } else {
                assert_eq!(fate, Fate::Refused("406 no".to_owned()));
            }
        }
        assert!(is_lost(&fate(refused(403), sent(Role::Reply))));
        assert!(matches!(fate(refused(403), sent(Role::FollowUp)), Fate::Refused(_)));
        let elsewhere = Sent { is_over_broker: false, ..sent(Role::Reply) };
        assert!(matches!(fate(refused(403), elsewhere), Fate::Refused(_)), "another store's refusal is its own");
    }

    #[test]
    fn what_is_unconfirmed_doubts_the_broker_unless_it_was_sent_alone() {
        for role in ROLES {
            let silent = || Err(PublishError::Unconfirmed(publication()));
            assert!(matches!(fate(silent(), sent(role)), Fate::Doubted(_)));
            let alone = Sent { is_alone: true, ..sent(role) };
            assert!(matches!(fate(silent(), alone), Fate::NotTaken(Fault::Silent, _)));
            let elsewhere = Sent { is_over_broker: false, ..sent(role) };
            assert!(matches!(fate(silent(), elsewhere), Fate::NotTaken(Fault::Away, _)));
            assert!(is_lost(&fate(Err(PublishError::Lost("gone".into())), alone)));
        }
    }
}
