//! Publishing with confirms.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use async_trait::async_trait;
use filestorage::broker::{self, Confirmation, Early, EarlyWord, Error, Publish, PublishError, State, wanted};
use filestorage::celery::message::Publication;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::session::ScriptedSession;
use crate::model::Verdict;

/// How long the session waits for a confirm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(15);

impl ScriptedSession {
    /// Waits a step through the network, and as long as nothing comes through.
    async fn pass_when_healed(&self) -> broker::Result<()> {
        self.pass().await?;
        while self.broker.lock().clients[&self.number].cut.is_some() {
            self.pass().await?;
        }
        Ok(())
    }

    /// Publishes, and says what the broker said to each.
    async fn verdicts(&self, batch: &[Publication]) -> broker::Result<Vec<Verdict>> {
        let mut state = self.state();
        // A blocked broker reads nothing.
        if state.wait_for(|state| !matches!(state, State::Blocked(_))).await.is_err() {
            return Err(Error::lost("the broker is gone"));
        }
        self.pass_when_healed().await?;
        let verdicts = self.broker.change(|model| batch.iter().map(|publication| model.arrive(publication)).collect());
        self.pass_when_healed().await?;
        Ok(verdicts)
    }
}

#[async_trait]
impl Publish for ScriptedSession {
    fn patience(&self) -> Duration {
        CONFIRM_LIMIT
    }

    async fn publish_within(
        &self,
        limit: Duration,
        batch: Vec<Publication>,
        mandatory: bool,
        mut early: Option<Early>,
    ) -> Vec<Result<Confirmation, PublishError>> {
        let began = Instant::now();
        let (mut cut, mut is_cut) = (None, false);
        let mut verdicts = None;
        {
            let mut deciding = pin!(broker::within(self.state(), limit, self.verdicts(&batch)));
            while verdicts.is_none() {
                let after = early.as_ref().map_or(Duration::MAX, |early| early.after);
                tokio::select! {
                    biased;
                    decided = &mut deciding => verdicts = Some(decided),
                    () = wanted(&mut cut) => (verdicts, is_cut) = (Some(Ok(None)), true),
                    () = tokio::time::sleep(after), if early.is_some() => {
                        if matches!(*self.state().borrow(), State::Open) {
                            cut = give_word(early.take(), &batch, |_| Known::Nothing);
                        }
                    }
                }
            }
        }
        let lost = |error: &Error| {
            self.broker.change(|model| model.doubt(&batch));
            batch.iter().map(|_| Err(PublishError::Lost(error.to_string()))).collect()
        };
        let verdicts = match verdicts {
            Some(Ok(Some(Ok(verdicts)))) => verdicts,
            Some(Ok(None)) | None => vec![Verdict::Silent; batch.len()],
            Some(Ok(Some(Err(error))) | Err(error)) => return lost(&error),
        };
        let mut is_told = vec![false; batch.len()];
        if verdicts.contains(&Verdict::Silent) && !is_cut {
            let rest = |wait: Duration| wait.min(limit).saturating_sub(began.elapsed());
            if let Some(after) = early.as_ref().map(|early| early.after) {
                if let Err(error) = broker::within(self.state(), rest(after), std::future::pending::<()>()).await {
                    return lost(&error);
                }
                cut = self.broker.change(|model| {
                    give_word(early.take(), &batch, |place| match verdicts[place] {
                        Verdict::Routed => {
                            model.confirm(&batch[place]);
                            is_told[place] = true;
                            Known::Confirmed(Confirmation::Routed)
                        }
                        Verdict::Silent => Known::Nothing,
                        _ => Known::NotTaken,
                    })
                });
            }
            if let Err(error) = broker::within(self.state(), rest(limit), wanted(&mut cut)).await {
                return lost(&error);
            }
        }
        self.broker.change(|model| {
            let answers =
                batch.into_iter().zip(verdicts).zip(is_told).map(|((publication, verdict), is_told)| match verdict {
                    Verdict::Routed => {
                        if !is_told {
                            model.confirm(&publication);
                        }
                        Ok(Confirmation::Routed)
                    }
                    Verdict::Returned => {
                        if !mandatory {
                            return Ok(Confirmation::Routed);
                        }
                        model.confirm_returned(&publication);
                        Ok(Confirmation::Returned { code: 312, text: "NO_ROUTE".to_owned() })
                    }
                    Verdict::Nacked => Err(PublishError::Nacked(Box::new(publication))),
                    Verdict::Silent => {
                        model.doubt(std::slice::from_ref(&publication));
                        Err(PublishError::Unconfirmed(Box::new(publication)))
                    }
                    Verdict::Refused(code, text) => Err(PublishError::Refused { code, text }),
                });
            answers.collect()
        })
    }
}

/// What is known of one publication when early word is given.
enum Known {
    Confirmed(Confirmation),
    /// It is tried again, or refused.
    NotTaken,
    Nothing,
}

/// Gives early word of a batch where that is asked for, and returns what ends the wait then.
fn give_word(
    early: Option<Early>,
    batch: &[Publication],
    mut known: impl FnMut(usize) -> Known,
) -> Option<oneshot::Receiver<()>> {
    let Early { word, cut, .. } = early?;
    let mut said = EarlyWord::default();
    let mut open = BTreeSet::new();
    for (place, publication) in batch.iter().enumerate() {
        match known(place) {
            Known::Confirmed(confirmation) => said.confirmed.push((place, confirmation)),
            Known::NotTaken => {}
            Known::Nothing => {
                open.insert(publication.address.clone());
            }
        }
    }
    said.open = open.into_iter().collect();
    // Whoever asked may have gone.
    drop(word.send(said));
    Some(cut)
}
