//! A bucket that can be taken away, made slow or forgetful, and that has a clock of its own.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use filestorage::storage::{
    Attributes, Backend, Condition, DeleteOptions, Error, ErrorKind, Grant, Key, Memory, Object, Operation, Probe,
    PutOptions, Removal, Result,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;

pub(crate) use crate::forwarding::Ask;
use crate::forwarding::{Forwarding, Hook};
use crate::support::object;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) key: Option<Key>,
    pub(crate) condition: Condition,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// It is carried out and answered.
    Served,
    /// Likewise, but no condition of a write is enforced: a lenient one is looked at first, any other is refused.
    Unenforced,
    /// It fails, and nothing happens.
    Refused(ErrorKind),
    /// It is carried out, and the answer is lost.
    ReplyLost,
    /// Its client gives up on it; it is carried out with [`Bucket::catch_up`].
    Late,
    /// It takes so long to get there.
    Slow(Duration),
    /// It waits for a permit before it is carried out.
    Held(Arc<Semaphore>),
    /// It waits for a permit and then fails, and nothing happens.
    HeldAndRefused(Arc<Semaphore>),
    /// It is carried out and its answer waits for a permit.
    ReplyHeld(Arc<Semaphore>),
}

/// One change of one object that has come to pass.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: Key,
    /// What is there since; nothing after a delete.
    pub(crate) attributes: Option<Attributes>,
    /// It named the state it replaced, as a synchronization always does.
    pub(crate) conditional: bool,
}

/// A write or delete that is carried out later.
enum Late {
    Put(Key, Box<Object>, PutOptions),
    Delete(Key, DeleteOptions),
}

type Weather = Arc<dyn Fn(&Request) -> Fate + Send + Sync>;

/// A place whose requests fare as the weather says.
pub(crate) type Bucket = Forwarding<Weathered>;

/// The weather, and what has come to pass under it.
pub(crate) struct Weathered {
    weather: Mutex<Weather>,
    requests: Mutex<Vec<Request>>,
    late: Mutex<Vec<Late>>,
    skew: Mutex<SignedDuration>,
    history: tokio::sync::Mutex<Vec<Change>>,
    writing: AtomicUsize,
    most_writing: AtomicUsize,
}

impl Bucket {
    /// One that keeps its objects in memory.
    pub(crate) fn new() -> Arc<Self> {
        Self::before(Arc::new(Memory::new()))
    }

    /// One that keeps its objects in another place.
    pub(crate) fn before(inner: Arc<dyn Backend>) -> Arc<Self> {
        let weathered = Weathered {
            weather: Mutex::new(Arc::new(|_| Fate::Served)),
            requests: Mutex::default(),
            late: Mutex::default(),
            skew: Mutex::default(),
            history: tokio::sync::Mutex::default(),
            writing: AtomicUsize::new(0),
            most_writing: AtomicUsize::new(0),
        };
        Self::over(inner, weathered)
    }

    /// Writes as another tool does, received at a time of the bucket's clock; `None` for a bucket that does not tell.
    pub(crate) async fn foreign(&self, key: &Key, payload: &'static str, received_at: Option<Timestamp>) -> Attributes {
        let mut object = object(payload);
        object.attributes.operation_id = None;
        object.attributes.info.received_at = received_at;
        if let Some(received_at) = received_at {
            object.attributes.stored_at = received_at;
        }
        let attributes = object.attributes.clone();
        self.change(&*self.inner, key, &object, &PutOptions::default()).await.unwrap();
        attributes
    }

    /// Carries out what its clients gave up on.
    pub(crate) async fn catch_up(&self) {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        for late in late {
            // What does not fit any more is refused, and nobody hears of it.
            match late {
                Late::Put(key, object, options) => drop(self.write(&*self.inner, &key, &object, &options).await),
                Late::Delete(key, options) => drop(self.remove(&*self.inner, &key, &options).await),
            }
        }
    }
}

impl Weathered {
    /// Decides how requests fare from now on.
    pub(crate) fn weather(&self, weather: impl Fn(&Request) -> Fate + Send + Sync + 'static) {
        *self.weather.lock().unwrap() = Arc::new(weather);
    }

    /// Cannot be reached from now on.
    pub(crate) fn leave(&self) {
        self.weather(|_| Fate::Refused(ErrorKind::Unavailable));
    }

    /// Serves everything from now on.
    pub(crate) fn come_back(&self) {
        self.weather(|_| Fate::Served);
    }

    /// Sets how much its clock is ahead of ours.
    pub(crate) fn set_skew(&self, skew: SignedDuration) {
        *self.skew.lock().unwrap() = skew;
    }

    /// Returns the present time by its clock.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now() + *self.skew.lock().unwrap()
    }

    /// Returns every change in the order in which they came to pass.
    pub(crate) async fn history(&self) -> Vec<Change> {
        self.history.lock().await.clone()
    }

    async fn change(
        &self,
        place: &dyn Backend,
        key: &Key,
        object: &Object,
        options: &PutOptions,
    ) -> Result<Attributes> {
        let mut history = self.history.lock().await;
        let conditional = options.condition != Condition::Always;
        let stored = place.put(key, object, options).await?;
        history.push(Change { key: key.clone(), attributes: Some(object.attributes.clone()), conditional });
        Ok(stored)
    }

    async fn remove(&self, place: &dyn Backend, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let mut history = self.history.lock().await;
        let removal = place.delete(key, options).await?;
        history.push(Change { key: key.clone(), attributes: None, conditional: options.generation.is_some() });
        Ok(removal)
    }

    /// Returns the writes and deletes it was asked for, and forgets all requests.
    pub(crate) fn writes(&self) -> Vec<Request> {
        let mut requests = std::mem::take(&mut *self.requests.lock().unwrap());
        requests.retain(|request| matches!(request.ask, Ask::Put | Ask::Delete));
        requests
    }

    /// Returns all it was asked for, and forgets it.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    /// Returns how many writes and deletes are under way.
    pub(crate) fn writing(&self) -> usize {
        self.writing.load(Ordering::SeqCst)
    }

    /// Returns how many writes and deletes were under way at once at most.
    pub(crate) fn most_writing(&self) -> usize {
        self.most_writing.load(Ordering::SeqCst)
    }

    async fn write(&self, place: &dyn Backend, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let mut object = object.clone();
        object.attributes.info.received_at = Some(self.now());
        self.change(place, key, &object, options).await
    }

    /// Does one after the other what it cannot do in one step.
    async fn look_and_write(
        &self,
        place: &dyn Backend,
        key: &Key,
        object: &Object,
        options: &PutOptions,
    ) -> Result<Attributes> {
        let refused =
            |kind| Err(Error::new(kind, Operation::Store, Some(key), "as the double says; write the test anew"));
        if !options.lenient {
            return refused(ErrorKind::Invalid);
        }
        let present = self.around(place, Ask::Stat, Some(key), || place.stat(key)).await?;
        match (&options.condition, present) {
            (Condition::Absent, None) => {}
            (Condition::Generation(wanted), Some(present)) if *wanted == present.generation => {}
            _ => return refused(ErrorKind::Precondition),
        }
        self.write(place, key, object, &PutOptions { condition: Condition::Always, ..options.clone() }).await
    }

    fn fate(&self, ask: Ask, key: Option<&Key>, condition: &Condition) -> Fate {
        let request = Request { ask, key: key.cloned(), condition: condition.clone() };
        let weather = Arc::clone(&self.weather.lock().unwrap());
        let fate = weather(&request);
        self.requests.lock().unwrap().push(request);
        fate
    }

    /// Lets a request meet its fate; `late` remembers it for later.
    async fn meet<T>(
        &self,
        fate: Fate,
        ask: Ask,
        key: Option<&Key>,
        work: impl Future<Output = Result<T>>,
        late: impl FnOnce(),
    ) -> Result<T> {
        let failed = |kind| Err(Error::new(kind, ask.operation(), key, "the bucket's weather; wait for a better one"));
        match fate {
            Fate::Served | Fate::Unenforced => work.await,
            Fate::Refused(kind) => failed(kind),
            Fate::ReplyLost => {
                work.await?;
                failed(ErrorKind::Unavailable)
            }
            Fate::Late => {
                late();
                failed(ErrorKind::Unavailable)
            }
            Fate::Slow(way) => {
                tokio::time::sleep(way).await;
                work.await
            }
            Fate::Held(gate) => {
                gate.acquire().await.unwrap().forget();
                work.await
            }
            Fate::HeldAndRefused(gate) => {
                gate.acquire().await.unwrap().forget();
                failed(ErrorKind::Unavailable)
            }
            Fate::ReplyHeld(gate) => {
                let answer = work.await;
                gate.acquire().await.unwrap().forget();
                answer
            }
        }
    }
}

impl fmt::Debug for Weathered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Weathered").finish_non_exhaustive()
    }
}

/// Counts one write as under way while it lives.
struct Writing<'a>(&'a AtomicUsize);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Hook for Weathered {
    async fn around<T: Send, F: Future<Output = Result<T>> + Send>(
        &self,
        _: &dyn Backend,
        ask: Ask,
        key: Option<&Key>,
        work: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        let fate = self.fate(ask, key, &Condition::Always);
        self.meet(fate, ask, key, work(), || {}).await
    }

    async fn put(&self, place: &dyn Backend, key: &Key, object: &Object, options: &PutOptions) -> Result<Attributes> {
        let now = self.writing.fetch_add(1, Ordering::SeqCst) + 1;
        let _writing = Writing(&self.writing);
        self.most_writing.fetch_max(now, Ordering::SeqCst);
        let fate = self.fate(Ask::Put, Some(key), &options.condition);
        // Like every bucket: asked right before the request leaves, whatever becomes of that.
        if !matches!(fate, Fate::Refused(_)) && !options.commit_guard.commit() {
            return Err(Error::new(
                ErrorKind::Abandoned,
                Operation::Store,
                Some(key),
                "abandoned; nothing was changed",
            ));
        }
        if matches!(fate, Fate::Unenforced) && options.condition != Condition::Always {
            return self.look_and_write(place, key, object, options).await;
        }
        let late = || self.late.lock().unwrap().push(Late::Put(key.clone(), Box::new(object.clone()), options.clone()));
        self.meet(fate, Ask::Put, Some(key), self.write(place, key, object, options), late).await
    }

    async fn delete(&self, place: &dyn Backend, key: &Key, options: &DeleteOptions) -> Result<Removal> {
        let condition = options.generation.clone().map_or(Condition::Always, Condition::Generation);
        self.writing.fetch_add(1, Ordering::SeqCst);
        let _writing = Writing(&self.writing);
        let fate = self.fate(Ask::Delete, Some(key), &condition);
        let late = || self.late.lock().unwrap().push(Late::Delete(key.clone(), options.clone()));
        self.meet(fate, Ask::Delete, Some(key), self.remove(place, key, options), late).await
    }

    async fn probe(&self, place: &dyn Backend) -> Result<Probe> {
        let skew = Some(*self.skew.lock().unwrap()).filter(|skew| !skew.is_zero());
        self.around(place, Ask::Probe, None, || async { Ok(Probe { skew }) }).await
    }

    /// Keeps a short operation id only, for a rule that an object can break.
    fn validate(&self, _: &dyn Backend, key: &Key, attributes: &Attributes) -> Result<()> {
        if attributes.operation_id.as_ref().is_some_and(|id| id.len() > 1_000) {
            return Err(Error::new(ErrorKind::Invalid, Operation::Store, Some(key), "the id is too long; shorten it"));
        }
        assert!(attributes.writer_id.is_some(), "a bucket judges what it will get");
        Ok(())
    }

    async fn sign(&self, place: &dyn Backend, key: &Key, _: &Grant) -> Result<String> {
        self.around(place, Ask::Sign, Some(key), || async { Ok(format!("signed://{key}")) }).await
    }
}
