//! Publications out, confirmed.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::FutureExt as _;
use lapin::{Channel, PublisherConfirm, message::BasicReturnMessage, options::BasicPublishOptions};
use tokio::sync::oneshot;

use crate::celery::message::{Address, Publication};

use super::{
    Result,
    convert::{properties_out, short},
    error::{self, Reply},
    link::Link,
    pool::ChannelPool,
};

/// Bodies handed to the library before it is waited for what it has written. Well below its buffer of 4 MiB: frames that
/// are still queued when the broker closes the channel would be sent after that and cost the connection.
const WINDOW: usize = 1 << 20;

/// What the broker said to a publication that it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// It is in a queue, or nobody asked whether it is (`mandatory` was false).
    Routed,
    /// It was mandatory and no queue wanted it: delivered to nobody.
    Returned {
        /// 312 `NO_ROUTE`.
        code: u16,
        /// The broker's words.
        text: String,
    },
}

/// Why a publication is not known to be taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PublishError {
    /// The broker refuses this very publication and will again: too large, a foreign `user_id`, no write permission, no
    /// such exchange. Code 0: it cannot be put on the wire at all (a name over 255 bytes, headers larger than a frame).
    #[error("refused: {code} {text}")]
    Refused {
        /// AMQP reply code: 403, 404, 406; or 0.
        code: u16,
        /// The broker's words, or ours with code 0.
        text: String,
    },
    /// The broker cannot take it now (a negative confirmation, twice): its queue is full, crashed or has no leader. Here it
    /// is back, to be tried again.
    #[error("not taken: the broker answered with a negative confirmation, twice; is a queue full?")]
    Nacked(Box<Publication>),
    /// The broker answered neither yes nor no in time: the queue has no leader, or the whole broker stands still. It may have
    /// been taken; here it is back. The session is not touched.
    #[error("not confirmed in time")]
    Unconfirmed(Box<Publication>),
    /// Nobody knows: the connection ended. It may have been taken.
    #[error("not confirmed: {0}")]
    Lost(String),
}

/// What is known of a batch before all of it is.
#[derive(Debug, Default)]
pub struct EarlyWord {
    /// Positions of publications that were confirmed, and what the broker said.
    pub confirmed: Vec<(usize, Confirmation)>,
    /// Addresses of those of which nothing is known yet.
    pub open: Vec<Address>,
}

/// Asks for word of a batch of which not everything is known after a while.
#[derive(Debug)]
pub struct Early {
    /// How long the whole batch is waited for.
    pub after: Duration,
    /// Gets the word, unless everything is known by then.
    pub word: oneshot::Sender<EarlyWord>,
    /// Ends the wait after that: what is not known then is unconfirmed.
    pub cut: oneshot::Receiver<()>,
}

/// Publishes over a pool of confirming channels; clones share the pool.
#[derive(Clone, Debug)]
pub struct Publisher {
    link: Arc<Link>,
    pool: ChannelPool,
}

/// What became of one publication in one try.
#[derive(Clone, Debug)]
enum TryOutcome {
    Done(Confirmation),
    /// A negative confirmation.
    Nacked,
    /// No confirmation in time.
    Late,
    /// The channel died before it was confirmed; the broker closes it because of exactly one publication.
    Suspect(Reply),
    /// It cannot be put on the wire.
    Invalid(String),
    Lost(String),
}

impl Publisher {
    pub(super) fn new(link: &Arc<Link>) -> Result<Self> {
        Ok(Self { link: Arc::clone(link), pool: ChannelPool::new(link)? })
    }

    /// Publishes all and waits until each is confirmed or known not to be; one result for each, in order. With
    /// `mandatory` the broker returns what it cannot route. While the session is blocked it waits without a time-out.
    ///
    /// Each is tried again once when it was negatively confirmed, and on its own when the broker closed the channel on it
    /// or on another one of the batch, so one may arrive twice.
    pub async fn publish(
        &self,
        batch: Vec<Publication>,
        mandatory: bool,
    ) -> Vec<std::result::Result<Confirmation, PublishError>> {
        self.publish_within(self.patience(), batch, mandatory, None).await
    }

    /// Returns how long a confirm is waited for: the session's time-out and half as much again, for a quorum queue confirms
    /// nothing while it elects a leader, which takes up to 11 s with a node cut off.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.link.options.timeout.mul_f32(1.5)
    }

    /// Returns the most bytes of a frame on this connection, which the headers of a message must fit.
    #[must_use]
    pub fn frame_max(&self) -> usize {
        match self.link.publishing.configuration().frame_max() {
            0 => usize::MAX,
            most => most as usize,
        }
    }

    /// Publishes as [`Publisher::publish`] does, with a wait of its own for each confirm, and gives early word where that is asked for.
    pub async fn publish_within(
        &self,
        limit: Duration,
        batch: Vec<Publication>,
        mandatory: bool,
        early: Option<Early>,
    ) -> Vec<std::result::Result<Confirmation, PublishError>> {
        if batch.is_empty() {
            return Vec::new();
        }
        let all: Vec<&Publication> = batch.iter().collect();
        let mut outcomes = self.attempt(limit, &all, mandatory, early).await;

        let nacked = places(&outcomes, |outcome| matches!(outcome, TryOutcome::Nacked));
        if !nacked.is_empty() {
            let again: Vec<&Publication> = nacked.iter().map(|place| all[*place]).collect();
            let second = self.attempt(limit, &again, mandatory, None).await;
            for (place, outcome) in nacked.into_iter().zip(second) {
                outcomes[place] = outcome;
            }
        }
        let suspects = places(&outcomes, |outcome| matches!(outcome, TryOutcome::Suspect(_)));
        if suspects.len() > 1 {
            let mut silent: HashSet<&Address> = HashSet::new();
            for place in suspects {
                let address = &all[place].address;
                // One wait for each address that says nothing is enough.
                outcomes[place] = if silent.contains(address) {
                    TryOutcome::Late
                } else {
                    self.attempt(limit, &[all[place]], mandatory, None).await.pop().unwrap_or_else(not_tried)
                };
                if matches!(outcomes[place], TryOutcome::Late) {
                    silent.insert(address);
                }
            }
        }
        outcomes.into_iter().zip(batch).map(|(outcome, publication)| outcome.into_result(publication)).collect()
    }

    /// Writes all to one channel, then waits for all confirms.
    async fn attempt(
        &self,
        limit: Duration,
        batch: &[&Publication],
        mandatory: bool,
        early: Option<Early>,
    ) -> Vec<TryOutcome> {
        let loan = match self.pool.lend().await {
            Ok(loan) => loan,
            Err(error) => return vec![TryOutcome::Lost(error.to_string()); batch.len()],
        };
        let Some(channel) = loan.channel() else { return vec![not_tried(); batch.len()] };
        let mut attempt = Attempt::new(&self.link, channel, limit, batch, mandatory);
        attempt.write().await;
        attempt.confirm(early).await;
        let Attempt { outcomes, late, .. } = attempt;
        if !late {
            loan.give_back();
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(not_tried)).collect()
    }
}

impl TryOutcome {
    fn into_result(self, publication: Publication) -> std::result::Result<Confirmation, PublishError> {
        match self {
            Self::Done(confirmation) => Ok(confirmation),
            Self::Suspect(Reply { code, text }) => Err(PublishError::Refused { code, text }),
            Self::Invalid(text) => Err(PublishError::Refused { code: 0, text }),
            Self::Nacked => Err(PublishError::Nacked(Box::new(publication))),
            Self::Late => Err(PublishError::Unconfirmed(Box::new(publication))),
            Self::Lost(text) => Err(PublishError::Lost(text)),
        }
    }
}

fn not_tried() -> TryOutcome {
    TryOutcome::Lost("not tried".to_owned())
}

fn places(outcomes: &[TryOutcome], wanted: impl Fn(&TryOutcome) -> bool) -> Vec<usize> {
    outcomes.iter().enumerate().filter(|(_, outcome)| wanted(outcome)).map(|(place, _)| place).collect()
}

/// Waits until whoever asked for [`Early`] word wants to wait no longer, for ever where nobody asked.
pub async fn wanted(cut: &mut Option<oneshot::Receiver<()>>) {
    if let Some(asked) = cut {
        let asked = asked.await;
        *cut = None;
        if asked.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

fn places_done(outcomes: &[Option<TryOutcome>]) -> Vec<usize> {
    let is_done = |outcome: &Option<TryOutcome>| matches!(outcome, Some(TryOutcome::Done(_)));
    outcomes.iter().enumerate().filter(|(_, outcome)| is_done(outcome)).map(|(place, _)| place).collect()
}

type Sending<'a> = Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send + 'a>>;

/// One batch on one channel.
struct Attempt<'a> {
    link: &'a Link,
    channel: &'a Channel,
    batch: &'a [&'a Publication],
    mandatory: bool,
    /// A second for each MiB that has to go over the wire.
    transfer: Duration,
    /// Longest wait for a confirm: what the caller says, after the transfer.
    limit: Duration,
    /// Longest wait until something is written, which has to queue behind what other channels write.
    write_limit: Duration,
    outcomes: Vec<Option<TryOutcome>>,
    confirms: VecDeque<(usize, PublisherConfirm)>,
    /// What came back and is not found yet: the confirm of the publication may come later.
    returned: Vec<BasicReturnMessage>,
    /// Failed with the channel or the connection; what that was is known once all failed.
    failed: Vec<usize>,
    refusal: Option<Reply>,
    fault: Option<String>,
    /// A confirm did not come in time.
    late: bool,
}

impl<'a> Attempt<'a> {
    fn new(
        link: &'a Link,
        channel: &'a Channel,
        limit: Duration,
        batch: &'a [&'a Publication],
        mandatory: bool,
    ) -> Self {
        let bytes: usize = batch.iter().map(|publication| publication.message.body.len()).sum();
        let transfer = Duration::from_secs((bytes >> 20) as u64);
        Self {
            link,
            channel,
            batch,
            mandatory,
            transfer,
            limit: limit + transfer,
            write_limit: limit.max(link.options.timeout) + transfer,
            outcomes: vec![None; batch.len()],
            confirms: VecDeque::with_capacity(batch.len()),
            returned: Vec::new(),
            failed: Vec::new(),
            refusal: None,
            fault: None,
            late: false,
        }
    }

    async fn write(&mut self) {
        let mut sending: Vec<(usize, Sending<'a>)> = Vec::with_capacity(self.batch.len());
        let mut bytes = 0;
        for place in 0..self.batch.len() {
            match self.send(place) {
                Ok(publish) => sending.push((place, publish)),
                Err(text) => self.outcomes[place] = Some(TryOutcome::Invalid(text)),
            }
            bytes += self.batch[place].message.body.len();
            if bytes > WINDOW {
                self.sent(std::mem::take(&mut sending)).await;
                bytes = 0;
            }
        }
        self.sent(sending).await;
    }

    /// Queues one publication's frames.
    fn send(&self, place: usize) -> std::result::Result<Sending<'a>, String> {
        let Publication { address, message } = self.batch[place];
        let properties = properties_out(message, self.link.publishing.configuration().frame_max())?;
        let exchange = short("the exchange", &address.exchange)?;
        let routing_key = short("the routing key", &address.routing_key)?;
        let options = BasicPublishOptions { mandatory: self.mandatory, ..BasicPublishOptions::default() };
        let channel = self.channel;
        let mut publish: Sending<'a> =
            Box::pin(
                async move { channel.basic_publish(exchange, routing_key, options, &message.body, properties).await },
            );
        // The first poll queues the frames, later ones wait until they are written. Nobody is woken for each of them:
        // they are asked again, in order, once all are queued.
        if let Poll::Ready(early) = publish.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            publish = Box::pin(std::future::ready(early));
        }
        Ok(publish)
    }

    async fn sent(&mut self, sending: Vec<(usize, Sending<'a>)>) {
        for (place, publish) in sending {
            match self.link.state.patiently(self.write_limit, "a publication", publish).await {
                Ok(Ok(confirm)) => self.confirms.push_back((place, confirm)),
                Ok(Err(fault)) => self.fail(place, &fault),
                Err(lost) => self.outcomes[place] = Some(TryOutcome::Lost(lost.to_string())),
            }
        }
    }

    async fn confirm(&mut self, mut early: Option<Early>) {
        let transfer = self.transfer;
        let wait = |early: &Early| tokio::time::Instant::now() + early.after + transfer;
        let mut cut = None;
        let mut timer = pin!(tokio::time::sleep_until(early.as_ref().map_or_else(tokio::time::Instant::now, wait)));
        while let Some((place, mut confirm)) = self.confirms.pop_front() {
            // Most of them are: the broker confirms many at once.
            if let Some(answer) = (&mut confirm).now_or_never() {
                self.take(place, answer);
                continue;
            }
            // Once one is late, the others have had their time, too.
            let limit = if self.late { Duration::ZERO } else { self.limit };
            let state = self.link.state.clone();
            let mut waiting = pin!(state.within(limit, &mut confirm));
            let outcome = loop {
                tokio::select! {
                    biased;
                    outcome = &mut waiting => break outcome,
                    () = wanted(&mut cut) => break Ok(None),
                    () = &mut timer, if early.is_some() => {
                        if state.is_blocked() {
                            // Nothing is confirmed then, and nobody is slow.
                            timer.as_mut().reset(early.as_ref().map_or_else(tokio::time::Instant::now, wait));
                        } else if let Some(Early { word, cut: wanted, .. }) = early.take() {
                            // Whoever asked may have gone.
                            drop(word.send(self.early_word(place)));
                            cut = Some(wanted);
                        }
                    }
                }
            };
            match outcome {
                Ok(Some(answer)) => self.take(place, answer),
                Ok(None) => {
                    self.late = true;
                    self.outcomes[place] = Some(TryOutcome::Late);
                }
                Err(lost) => self.outcomes[place] = Some(TryOutcome::Lost(lost.to_string())),
            }
        }
        self.find_returned();
        for place in std::mem::take(&mut self.failed) {
            self.outcomes[place] = Some(match (&self.refusal, &self.fault) {
                (Some(reply), _) => TryOutcome::Suspect(reply.clone()),
                (None, Some(text)) => TryOutcome::Lost(text.clone()),
                (None, None) => TryOutcome::Lost("the channel ended".to_owned()),
            });
        }
    }

    /// Takes in the answer to one publication.
    fn take(&mut self, place: usize, answer: lapin::Result<lapin::Confirmation>) {
        self.outcomes[place] = Some(match answer {
            Ok(lapin::Confirmation::Ack(message)) => {
                self.returned.extend(message);
                TryOutcome::Done(Confirmation::Routed)
            }
            Ok(lapin::Confirmation::Nack(message)) => {
                self.returned.extend(message);
                TryOutcome::Nacked
            }
            Ok(lapin::Confirmation::NotRequested) => TryOutcome::Lost("confirms are off".to_owned()),
            Err(fault) => return self.fail(place, &fault),
        });
    }

    /// Takes in what has been answered so far, while the publication at `waited` is waited for, and says what is known.
    fn early_word(&mut self, waited: usize) -> EarlyWord {
        self.sweep();
        let known: Vec<usize> = places_done(&self.outcomes);
        // What came back is handed to a confirm before its own or to its own: to one that is answered by now.
        self.sweep();
        self.find_returned();
        let confirmed = known.into_iter().filter_map(|place| match &self.outcomes[place] {
            Some(TryOutcome::Done(confirmation)) => Some((place, confirmation.clone())),
            _ => None,
        });
        let open = self.confirms.iter().map(|(place, _)| *place).chain([waited]);
        let open: BTreeSet<&Address> = open.map(|place| &self.batch[place].address).collect();
        EarlyWord { confirmed: confirmed.collect(), open: open.into_iter().cloned().collect() }
    }

    /// Takes in every answer that is there.
    fn sweep(&mut self) {
        for (place, mut confirm) in std::mem::take(&mut self.confirms) {
            match (&mut confirm).now_or_never() {
                Some(answer) => self.take(place, answer),
                None => self.confirms.push_back((place, confirm)),
            }
        }
    }

    fn fail(&mut self, place: usize, fault: &lapin::Error) {
        self.failed.push(place);
        // What was queued after the channel closed fails with its state only; the reason came with an earlier one.
        match error::reply(fault) {
            Some(reply) if self.link.publishing.status().connected() && !error::passes(&reply) => {
                self.refusal = Some(reply);
            }
            _ => self.fault = Some(error::classify(fault).to_string()),
        }
    }

    /// Finds the publications that came back by what they are. The library hands a returned message to whichever confirm comes
    /// next, and the broker confirms routed ones and returned ones in any order.
    fn find_returned(&mut self) {
        for message in std::mem::take(&mut self.returned) {
            if !self.mark_returned(&message) {
                self.returned.push(message);
            }
        }
    }

    fn mark_returned(&mut self, returned: &BasicReturnMessage) -> bool {
        let text = |text: &Option<lapin::types::ShortString>| text.as_ref().map(|text| text.as_str().to_owned());
        let correlation_id = text(returned.properties.correlation_id());
        let message_id = text(returned.properties.message_id());
        let place = (0..self.batch.len()).find(|place| {
            let Publication { address, message } = self.batch[*place];
            matches!(self.outcomes[*place], Some(TryOutcome::Done(Confirmation::Routed)))
                && address.exchange == returned.exchange.as_str()
                && address.routing_key == returned.routing_key.as_str()
                && message.properties.correlation_id == correlation_id
                && message.properties.message_id == message_id
                && message.body == returned.data
        });
        if let Some(place) = place {
            let text = returned.reply_text.as_str().to_owned();
            let confirmation = Confirmation::Returned { code: returned.reply_code, text };
            self.outcomes[place] = Some(TryOutcome::Done(confirmation));
        }
        place.is_some()
    }
}
