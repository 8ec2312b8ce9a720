//! Makes an idle broker talk, so that its silence means something.

use std::time::Duration;

use lapin::{Channel, options::BasicQosOptions};
use tokio::time::{MissedTickBehavior, interval};

use super::{last_read::LastRead, state::StateCell};

/// So long nothing was read before something is asked; the broker's own heartbeats may be 8 s apart.
const LULL: Duration = Duration::from_secs(2);
/// So often it is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Asks the broker for a small answer whenever it has said nothing for a while, until the session ends. The channel serves
/// nothing else, so what is asked has no effect and waits for no queue.
pub(super) fn keep(channel: Channel, last_read: LastRead, state: StateCell) {
    tokio::spawn(async move {
        let pulse = async {
            let mut look = interval(LOOK);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                // One question at a time: who does not answer the first does not answer the second.
                if last_read.silence() >= LULL
                    && let Err(error) = channel.basic_qos(1, BasicQosOptions::default()).await
                {
                    tracing::debug!(%error, "the broker took no pulse");
                    return;
                }
            }
        };
        tokio::select! {
            () = pulse => {}
            _ = state.lost() => {}
        }
    });
}
