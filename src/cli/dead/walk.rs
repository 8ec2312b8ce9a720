//! A walk over the dead messages, in their order: each is got once, and whatever is not removed goes back to its place.

use std::pin::Pin;
use std::time::Duration;

use clap::Args;

use crate::broker::{Confirmation, DEAD_QUEUE, DeadMessage, DeadReader, DeadToken, Look, PublishError, Session};
use crate::celery::message::{Address, Message, Publication};
use crate::celery::{DeadCopy, moved};
use crate::cli::terminal::{Output, Progress, interruption};
use crate::wiring::{Code, Failure};

/// Failed deliveries from which on a copy is moved to the end of the queue instead of going back to its place. A quorum queue
/// of RabbitMQ 4 drops a message at the 21st, and each look counts as one.
const WORN: u64 = 10;
/// The longest wait for publications that are under way when the program is interrupted.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// Publications that are sent at once, and about how many bytes of them.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 4 << 20;

/// How far a walk goes.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Reach {
    /// Largest number of messages that are chosen.
    #[arg(long, value_name = "COUNT")]
    pub(super) limit: Option<u64>,

    /// Largest number of messages that are looked at, from the oldest on; the broker keeps them for this command meanwhile.
    #[arg(long, value_name = "COUNT", default_value_t = 100_000)]
    pub(super) scan: u64,
}

/// One message that was got.
#[derive(Debug)]
pub(super) struct FoundMessage {
    pub(super) copy: DeadCopy,
    pub(super) message: Message,
    /// Its place in the queue, counted from 1.
    pub(super) position: u64,
}

/// What is needed to remove a message, or to leave it.
#[derive(Debug)]
#[must_use = "a message is removed or kept"]
pub(super) struct HeldCopy {
    ack_token: DeadToken,
    is_worn: bool,
}

/// A batch of publications, each with what removes its copy.
#[derive(Debug)]
pub(super) struct PublicationBatch<T> {
    publications: Vec<Publication>,
    items: Vec<T>,
    bytes: usize,
}

impl<T> PublicationBatch<T> {
    pub(super) const fn new() -> Self {
        Self { publications: Vec::new(), items: Vec::new(), bytes: 0 }
    }

    pub(super) fn push(&mut self, publication: Publication, item: T) {
        self.bytes += publication.message.body.len();
        self.publications.push(publication);
        self.items.push(item);
    }

    /// Tells whether the batch is to be sent before anything else is got.
    pub(super) const fn is_full(&self) -> bool {
        self.items.len() >= BATCH || self.bytes >= BATCH_BYTES
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// What the broker said to a publication.
pub(super) type Word = Result<Confirmation, PublishError>;

/// A walk over the dead messages.
pub(super) struct Walk<'s> {
    session: &'s Session,
    reader: DeadReader,
    progress: Progress,
    /// Messages that waited at the beginning.
    pub(super) waiting: u64,
    /// Messages that were got.
    pub(super) looked_at: u64,
    scan: u64,
    /// Messages that had nearly too many failed deliveries, and go to the end of the queue.
    worn: PublicationBatch<DeadToken>,
    /// How many of them were moved.
    moved: u64,
    /// Whether the queue has a limit of its own that no number of looks reaches, once that is known.
    outlasts_looks: Option<bool>,
    interrupted: Pin<Box<dyn Future<Output = ()>>>,
    pub(super) is_interrupted: bool,
}

impl<'s> Walk<'s> {
    /// Begins a walk over what waits now.
    pub(super) async fn begin(
        session: &'s Session,
        reach: Reach,
        output: &Output,
        doing: &'static str,
    ) -> Result<Self, Failure> {
        let waiting = match session.topology().look(DEAD_QUEUE).await? {
            Look::Present { messages, .. } => u64::from(messages),
            Look::Missing => {
                let why = format!("there is no queue {DEAD_QUEUE} at {}; the first worker declares it", session.url());
                return Err(Failure::new(Code::NoInput, why));
            }
            Look::Down(words) => {
                let why =
                    format!("{DEAD_QUEUE} cannot be reached: {words}; start the node of the cluster that holds it");
                return Err(Failure::new(Code::Unavailable, why));
            }
        };
        let progress = Progress::counting(output, doing);
        progress.expect_values(waiting.min(reach.scan));
        Ok(Self {
            session,
            reader: session.dead_reader().await?,
            progress,
            waiting,
            looked_at: 0,
            scan: reach.scan,
            worn: PublicationBatch::new(),
            moved: 0,
            outlasts_looks: None,
            interrupted: Box::pin(interruption()),
            is_interrupted: false,
        })
    }

    /// Gets the next message; `None` at the end of what waited at the beginning, or after an interruption.
    ///
    /// What dies while the walk goes on is not got: a message that is replayed and dies again would be got for ever.
    pub(super) async fn next(&mut self) -> Result<Option<(FoundMessage, HeldCopy)>, Failure> {
        if self.is_interrupted || self.looked_at >= self.waiting.min(self.scan) {
            return Ok(None);
        }
        let got = tokio::select! {
            biased;
            () = &mut self.interrupted => {
                self.is_interrupted = true;
                return Ok(None);
            }
            got = self.reader.next() => got?,
        };
        let Some(DeadMessage { message, failed_deliveries, ack_token }) = got else { return Ok(None) };
        self.looked_at += 1;
        let copy = DeadCopy::read(&message);
        self.progress.step(copy.id.as_deref().unwrap_or_default());
        let held = HeldCopy { ack_token, is_worn: failed_deliveries >= WORN };
        Ok(Some((FoundMessage { copy, message, position: self.looked_at }, held)))
    }

    /// Tells whether everything that waited at the beginning was looked at.
    pub(super) fn is_complete(&self) -> bool {
        !self.is_interrupted && (self.looked_at >= self.waiting || self.looked_at < self.scan)
    }

    /// Removes a message.
    pub(super) fn remove(&self, held: HeldCopy) {
        let HeldCopy { ack_token, .. } = held;
        self.reader.acknowledge(&ack_token);
    }

    /// Leaves a message in the queue.
    pub(super) async fn keep(&mut self, message: &Message, held: HeldCopy) -> Result<(), Failure> {
        if !held.is_worn {
            return Ok(());
        }
        let outlasts = match self.outlasts_looks {
            Some(known) => known,
            None => self.session.dead_outlasts_looks().await?,
        };
        self.outlasts_looks = Some(outlasts);
        if !outlasts {
            let address = Address::queue(DEAD_QUEUE);
            self.worn.push(Publication { address, message: moved(message) }, held.ack_token);
            if self.worn.is_full() {
                self.move_worn().await;
            }
        }
        Ok(())
    }

    /// Sends a batch, and returns each item with the broker's word; `None` where it is not known because of an interruption.
    pub(super) async fn publish<T>(&mut self, batch: PublicationBatch<T>) -> Vec<(T, Option<Word>)> {
        let publisher = self.session.publisher();
        let mut publishing = Box::pin(publisher.publish(batch.publications, true));
        let words = tokio::select! {
            words = &mut publishing => Some(words),
            () = &mut self.interrupted, if !self.is_interrupted => {
                self.is_interrupted = true;
                tokio::time::timeout(LAST_WAIT, publishing).await.ok()
            }
        };
        let mut words = words.into_iter().flatten();
        batch.items.into_iter().map(|item| (item, words.next())).collect()
    }

    /// Moves worn messages to the end of the queue: the copy is confirmed before the old one is removed.
    async fn move_worn(&mut self) {
        let batch = std::mem::replace(&mut self.worn, PublicationBatch::new());
        if batch.is_empty() {
            return;
        }
        for (ack_token, word) in self.publish(batch).await {
            // What is not taken stays where it is.
            if let Some(Ok(Confirmation::Routed)) = word {
                self.reader.acknowledge(&ack_token);
                self.moved += 1;
            }
        }
    }

    /// Hides the display while `write` writes to the terminal.
    pub(super) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.progress.suspend(write)
    }

    /// Ends the walk: all acknowledgements have arrived then, and everything else is back in its place.
    pub(super) async fn end(mut self, output: &Output) -> Result<(), Failure> {
        if !self.is_interrupted {
            self.move_worn().await;
        }
        let (moved, is_complete) = (self.moved, self.is_complete());
        let (scan, waiting, is_interrupted) = (self.scan, self.waiting, self.is_interrupted);
        drop(self.progress);
        let closed = self.reader.close().await;
        self.session.close().await;
        closed.map_err(|error| {
            let mut failure = Failure::from(error);
            failure.message.push_str("; what was removed last may still be there, so look again");
            failure
        })?;
        if moved > 0 {
            output.remark(&format!(
                "{moved} messages were moved to the end of the queue: RabbitMQ drops a message of this quorum queue after 20 looks, \
                 unless a policy sets `delivery-limit`"
            ));
        }
        if !is_complete && !is_interrupted {
            output.remark(&format!("only {scan} of {waiting} messages were looked at; raise --scan"));
        }
        Ok(())
    }
}

/// Returns the failure of a command that was interrupted.
pub(super) fn interrupted() -> Failure {
    Failure::new(Code::TryAgain, "interrupted before the end; what is not done is still in the queue, run it again")
}
