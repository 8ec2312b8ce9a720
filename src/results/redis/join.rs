//! One batch over two ways: answers go to the Redis, everything else to the broker, at the same time.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::Kept;
use crate::broker::{Confirmation, Early, EarlyWord, Publish, PublishError};
use crate::celery::message::{Address, Publication};

/// A batch by its two ways, with the positions in the batch.
#[derive(Debug, Default)]
pub(super) struct Parts {
    rest: Vec<Publication>,
    rest_at: Vec<usize>,
    pub(super) answers: Vec<Publication>,
    answers_at: Vec<usize>,
}

type Answers = Vec<Result<Confirmation, PublishError>>;

impl Parts {
    /// Parts a batch into what the Redis keeps and the rest.
    pub(super) fn of(batch: Vec<Publication>, is_kept_here: impl Fn(usize, &Publication) -> bool) -> Self {
        let mut parts = Self::default();
        for (at, publication) in batch.into_iter().enumerate() {
            let (part, positions) = if is_kept_here(at, &publication) {
                (&mut parts.answers, &mut parts.answers_at)
            } else {
                (&mut parts.rest, &mut parts.rest_at)
            };
            part.push(publication);
            positions.push(at);
        }
        parts
    }

    /// Takes out what goes to the broker.
    pub(super) fn take_rest(&mut self) -> Vec<Publication> {
        std::mem::take(&mut self.rest)
    }

    /// Puts what became of both parts into the order of the batch; `outcome` says what became of an answer.
    pub(super) fn joined(
        self,
        rest: Answers,
        kept: Vec<Kept>,
        outcome: impl Fn(Kept, Publication) -> Result<Confirmation, PublishError>,
    ) -> Answers {
        let kept = kept.into_iter().chain(std::iter::repeat(Kept::Unknown));
        let answers = self.answers.into_iter().zip(kept).map(|(answer, kept)| outcome(kept, answer));
        let mut all: Vec<_> =
            self.rest_at.into_iter().zip(rest).chain(self.answers_at.into_iter().zip(answers)).collect();
        all.sort_unstable_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Sends the rest to the broker while `keeping` sees to the answers; returns what became of both.
    ///
    /// Who asks for early word gets it of both. An end of the wait ends it for both.
    pub(super) async fn send(
        &self,
        publisher: &dyn Publish,
        rest: Vec<Publication>,
        keeping: impl Future<Output = Vec<Kept>>,
        limit: Duration,
        early: Option<Early>,
    ) -> (Answers, Vec<Kept>) {
        let mut keeping = pin!(async { timeout(limit, keeping).await.unwrap_or_default() });
        let Some(Early { after, word, mut cut }) = early else {
            let sending = async {
                if rest.is_empty() { Vec::new() } else { publisher.publish_within(limit, rest, true, None).await }
            };
            return tokio::join!(sending, keeping);
        };
        let (mut word, (tell, mut told)) = (Some(word), oneshot::channel());
        let (end, ended) = oneshot::channel();
        let mut end = Some(end);
        let has_rest = !rest.is_empty();
        let mut sending =
            pin!(publisher.publish_within(limit, rest, true, Some(Early { after, word: tell, cut: ended })));
        let mut timer = pin!(sleep(after));
        let (mut sent, mut kept) = ((!has_rest).then(Vec::new), None);
        let (mut heard, mut is_late) = (None, false);
        // What says once and for all what it has to say is not asked again.
        let (mut has_told, mut has_cut) = (false, false);
        loop {
            tokio::select! {
                biased;
                answers = &mut sending, if sent.is_none() => sent = Some(answers),
                outcomes = &mut keeping, if kept.is_none() => kept = Some(outcomes),
                early = &mut told, if !has_told => {
                    has_told = true;
                    heard = early.ok();
                }
                () = &mut timer, if !is_late => is_late = true,
                enough = &mut cut, if !has_cut && word.is_none() => {
                    has_cut = true;
                    // Whoever asked for word may go away instead: then the whole is waited for.
                    if let (Ok(()), Some(end)) = (enough, end.take()) {
                        end.send(()).unwrap_or_default();
                        kept.get_or_insert_default();
                    }
                }
            }
            if let (Some(_), Some(_)) = (&sent, &kept) {
                break;
            }
            // While the broker is blocked it gives no word, and nobody is told anything.
            if is_late
                && (heard.is_some() || sent.is_some())
                && let Some(word) = word.take()
            {
                let so_far = self.so_far(sent.as_ref(), kept.as_ref(), heard.take());
                word.send(so_far).unwrap_or_default();
            }
        }
        (sent.unwrap_or_default(), kept.unwrap_or_default())
    }

    fn so_far(&self, sent: Option<&Answers>, kept: Option<&Vec<Kept>>, heard: Option<EarlyWord>) -> EarlyWord {
        let EarlyWord { confirmed, mut open } = heard.unwrap_or_default();
        let mut confirmed: Vec<_> =
            confirmed.into_iter().filter_map(|(at, answer)| Some((*self.rest_at.get(at)?, answer))).collect();
        let of_rest = sent.into_iter().flatten().zip(&self.rest_at);
        confirmed.extend(of_rest.filter_map(|(answer, at)| Some((*at, answer.as_ref().ok()?.clone()))));
        match kept {
            Some(kept) => {
                let of_answers = kept.iter().zip(&self.answers_at).filter(|(kept, _)| **kept == Kept::Yes);
                confirmed.extend(of_answers.map(|(_, at)| (*at, Confirmation::Routed)));
            }
            None => {
                let places: BTreeSet<&Address> = self.answers.iter().map(|answer| &answer.address).collect();
                open.extend(places.into_iter().cloned());
            }
        }
        EarlyWord { confirmed, open }
    }
}
