//! Publishing with confirms.

use std::time::Duration;

use async_trait::async_trait;
use filestorage::broker::{self, Confirmation, Error, Publish, PublishError, State};
use filestorage::celery::message::Publication;
use tokio::time::Instant;

use super::session::ScriptedSession;
use crate::model::Verdict;

/// How long the session waits for a confirm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(15);

impl ScriptedSession {
    /// Publishes, and says what the broker said to each.
    async fn verdicts(&self, batch: &[Publication]) -> broker::Result<Vec<Verdict>> {
        let mut state = self.state();
        // A blocked broker reads nothing.
        if state.wait_for(|state| !matches!(state, State::Blocked(_))).await.is_err() {
            return Err(Error::lost("the broker is gone"));
        }
        self.pass().await?;
        let verdicts = self.broker.change(|model| {
            if model.clients[&self.number].cut.is_some() {
                model.note(&format!("swallowed {}", batch.len()));
                return None;
            }
            Some(batch.iter().map(|publication| model.arrive(publication)).collect())
        });
        let Some(verdicts) = verdicts else { return std::future::pending().await };
        self.pass().await?;
        if self.broker.lock().clients[&self.number].cut.is_some() {
            // The confirms are on their way to nowhere.
            return std::future::pending().await;
        }
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
    ) -> Vec<Result<Confirmation, PublishError>> {
        let began = Instant::now();
        let verdicts = match broker::within(self.state(), limit, self.verdicts(&batch)).await {
            Ok(Some(Ok(verdicts))) => verdicts,
            Ok(None) => vec![Verdict::Silent; batch.len()],
            Ok(Some(Err(error))) | Err(error) => {
                self.broker.change(|model| model.doubt(&batch));
                return batch.iter().map(|_| Err(PublishError::Lost(error.to_string()))).collect();
            }
        };
        if verdicts.contains(&Verdict::Silent) {
            let rest = limit.saturating_sub(began.elapsed());
            if let Err(error) = broker::within(self.state(), rest, std::future::pending::<()>()).await {
                self.broker.change(|model| model.doubt(&batch));
                return batch.iter().map(|_| Err(PublishError::Lost(error.to_string()))).collect();
            }
        }
        self.broker.change(|model| {
            let answers = batch.into_iter().zip(verdicts).map(|(publication, verdict)| match verdict {
                Verdict::Routed => {
                    model.confirm(&publication);
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
