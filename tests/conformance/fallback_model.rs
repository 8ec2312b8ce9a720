//! Two workers on one overlay, a bucket that comes and goes, crashes and redeliveries, against a plain model.
//!
//! Each worker has a runtime of its own; a crash drops it with everything that was under way in it. Commands that were
//! under way come again as redelivered ones, as they do from a queue. Each key is used by one client, so that the model
//! knows what must be there.

use filestorage::storage::{
    Condition, DeleteRequest, Engine, ErrorKind, Fallback, GetOptions, Key, ListRequest, Redelivered, Result,
    StoreOptions, Value,
};
use futures_util::future::join_all;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::fallback::open;
use crate::fallback_engine::Between;
use crate::support::{Rest, key, random, rest, scratch};
use crate::unreliable_bucket::{Ask, Bucket, Fate};

const CLIENTS: usize = 6;
const KEYS: usize = 6;
const COMMANDS: usize = 150;

/// A worker that can crash.
struct Worker {
    bucket: Arc<Bucket>,
    folder: PathBuf,
    between: Between,
    process: Mutex<Process>,
}

/// One life of a worker.
struct Process {
    runtime: Option<Runtime>,
    engine: Engine,
}

impl Process {
    /// Starts, and sends what waits all the time. Blocks.
    fn start(bucket: &Arc<Bucket>, folder: &std::path::Path, between: Between) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let fallback = open(bucket, folder);
        let engine = between.engine(&fallback);
        runtime.spawn(async move {
            loop {
                if let Err(error) = fallback.sync(&()).await {
                    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
                }
                sleep(Duration::from_millis(3)).await;
            }
        });
        Self { runtime: Some(runtime), engine }
    }
}

impl Worker {
    async fn new(bucket: &Arc<Bucket>, folder: PathBuf, between: Between) -> Self {
        let (bucket, of) = (Arc::clone(bucket), folder.clone());
        let start = move || (Process::start(&bucket, &of, between), bucket);
        let (process, bucket) = spawn_blocking(start).await.unwrap();
        Self { bucket, folder, between, process: Mutex::new(process) }
    }

    /// Dies in the middle of everything and starts again.
    async fn crash(&self) {
        let mut process = self.process.lock().await;
        let (died, bucket, folder) = (process.runtime.take(), Arc::clone(&self.bucket), self.folder.clone());
        let between = self.between;
        let again = move || {
            drop(died);
            Process::start(&bucket, &folder, between)
        };
        *process = spawn_blocking(again).await.unwrap();
    }

    async fn end(self) {
        let process = self.process.into_inner();
        spawn_blocking(move || drop(process.runtime)).await.unwrap();
    }

    /// Runs a command in the worker; nothing comes back when it crashed.
    async fn run<T, W>(&self, command: impl FnOnce(Engine) -> W) -> Option<Result<T>>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let running = {
            let process = self.process.lock().await;
            let work = command(process.engine.clone());
            process.runtime.as_ref().unwrap().spawn(work)
        };
        match running.await {
            // A dying process answers nobody.
            Ok(Err(error)) if error.message().contains("the program is shutting down") => {}
            Ok(answer) => return Some(answer),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
        // Nothing of it may still be at work when the command comes again.
        drop(self.process.lock().await);
        None
    }
}

/// What has been seen to happen, so that the test does not pass for want of trouble.
#[derive(Default)]
struct Trouble {
    home: AtomicU64,
    landed: AtomicU64,
    redelivered: AtomicU64,
    unavailable: AtomicU64,
}

/// What may be under a key: a value, or none.
type States = BTreeSet<Option<String>>;

struct Client {
    name: usize,
    seed: u64,
    workers: Arc<Vec<Worker>>,
    states: BTreeMap<Key, States>,
    seen: Arc<Trouble>,
}

impl Client {
    fn new(name: usize, seed: u64, workers: &Arc<Vec<Worker>>, seen: &Arc<Trouble>) -> Self {
        let states = (0..KEYS).map(|number| (key(&format!("client {name}/{number}")), States::from([None]))).collect();
        Self { name, seed, workers: Arc::clone(workers), states, seen: Arc::clone(seen) }
    }

    fn draw(&mut self, below: usize) -> usize {
        random(&mut self.seed) as usize % below
    }

    /// Runs a command until it is answered; every try after the first is a redelivered one.
    async fn run<T, W>(&mut self, command: impl Fn(Engine, Option<Redelivered>) -> W) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let begin = Timestamp::now();
        let mut redelivered = None;
        loop {
            let worker = self.draw(self.workers.len());
            let workers = Arc::clone(&self.workers);
            if let Some(answer) = workers[worker].run(|engine| command(engine, redelivered)).await {
                return answer;
            }
            self.seen.redelivered.fetch_add(1, Ordering::Relaxed);
            let started_at = Some(begin).filter(|_| self.draw(4) > 0);
            redelivered = Some(Redelivered { started_at });
        }
    }

    async fn live(mut self) -> BTreeMap<Key, States> {
        let keys: Vec<Key> = self.states.keys().cloned().collect();
        for number in 0..COMMANDS {
            let key = keys[self.draw(keys.len())].clone();
            sleep(Duration::from_micros(self.draw(5_000) as u64)).await;
            let value = format!("{number} of {}", self.name);
            match self.draw(20) {
                0..9 => self.store(&key, value).await,
                9..12 => self.delete(&key).await,
                12..15 => self.store_if(&key, value).await,
                15..18 => self.retrieve(&key).await,
                _ => self.list().await,
            }
        }
        self.states
    }

    fn options(redelivered: Option<Redelivered>, id: &str, condition: Condition) -> StoreOptions {
        StoreOptions { redelivered, operation_id: Some(id.to_owned()), condition, ..StoreOptions::default() }
    }

    async fn store(&mut self, key: &Key, value: String) {
        let (it, sent) = (key.clone(), value.clone());
        let answer = self.run(move |engine, redelivered| {
            let (it, sent) = (it.clone(), sent.clone());
            let options = Self::options(redelivered, &sent, Condition::Always);
            async move { engine.store(&it, Value::Text(sent), options).await }
        });
        let receipt = answer.await.unwrap();
        let landed = if receipt.pending_sync { &self.seen.landed } else { &self.seen.home };
        landed.fetch_add(1, Ordering::Relaxed);
        self.states.insert(key.clone(), States::from([Some(value)]));
    }

    async fn delete(&mut self, key: &Key) {
        let it = key.clone();
        let answer = self.run(move |engine, redelivered| {
            let it = it.clone();
            async move { engine.delete(&it, DeleteRequest { redelivered, ..DeleteRequest::default() }).await }
        });
        let landed = if rest(answer.await.unwrap()) == Rest::Overlay { &self.seen.landed } else { &self.seen.home };
        landed.fetch_add(1, Ordering::Relaxed);
        self.states.insert(key.clone(), States::from([None]));
    }

    /// Stores if nothing is there, or what was just seen.
    async fn store_if(&mut self, key: &Key, value: String) {
        let it = key.clone();
        let seen = self.run(move |engine, _| {
            let it = it.clone();
            async move { engine.retrieve(&it, GetOptions::default()).await }
        });
        let Ok(seen) = seen.await else { return };
        let condition = match &seen {
            None => Condition::Absent,
            Some(seen) => Condition::Generation(seen.receipt.generation.clone()),
        };
        self.check(key, seen.map(|seen| seen.value));
        let (it, sent) = (key.clone(), value.clone());
        let answer = self.run(move |engine, redelivered| {
            let (it, sent) = (it.clone(), sent.clone());
            let options = Self::options(redelivered, &sent, condition.clone());
            async move { engine.store(&it, Value::Text(sent), options).await }
        });
        match answer.await {
            Ok(_) => drop(self.states.insert(key.clone(), States::from([Some(value)]))),
            Err(error) => {
                // Only the bucket could decide, and it may have done so.
                assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
                self.states.get_mut(key).unwrap().insert(Some(value));
            }
        }
    }

    async fn retrieve(&mut self, key: &Key) {
        let it = key.clone();
        let found = self.run(move |engine, _| {
            let it = it.clone();
            async move { engine.retrieve(&it, GetOptions::default()).await }
        });
        match found.await {
            Ok(found) => self.check(key, found.map(|found| found.value)),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
                self.seen.unavailable.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What was read must be possible, and from now on it is certain.
    fn check(&mut self, key: &Key, found: Option<Value>) {
        let found = found.map(|value| match value {
            Value::Text(text) => text,
            other => panic!("{other:?}"),
        });
        assert!(self.states[key].contains(&found), "{key}: {found:?} of {:?}", self.states[key]);
        self.states.insert(key.clone(), States::from([found]));
    }

    async fn list(&mut self) {
        let prefix = format!("client {}/", self.name);
        let limit = [None, Some(2), Some(50)][self.draw(3)];
        let found = self.run(move |engine, _| {
            let request = ListRequest { prefix: Some(prefix.clone()), limit, ..ListRequest::default() };
            async move { engine.list(request).await }
        });
        let found = match found.await {
            Ok(found) => found,
            Err(error) => return assert_eq!(error.kind, ErrorKind::Unavailable, "{error}"),
        };
        let full = limit.is_some_and(|limit| found.len() >= limit);
        for (key, states) in &self.states {
            if full && found.last().is_some_and(|last| key > last) {
                continue;
            }
            let fits = states.iter().any(|state| state.is_some() == found.contains(key));
            assert!(fits, "{key}: {states:?} in {found:?}");
        }
    }
}

/// Changes the bucket's weather until told to stop; clear at the end.
async fn change_weather(bucket: Arc<Bucket>, mut seed: u64, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let mut pause = Duration::from_millis(2 + random(&mut seed) % 30);
        match random(&mut seed) % 3 {
            0 => bucket.leave(),
            1 => {
                // Nothing can be looked at, and of what is written it is not known whether it was.
                let seed = Mutex::new(random(&mut seed));
                bucket.weather(move |request| match (request.ask, seed.try_lock()) {
                    (Ask::Put | Ask::Delete, Ok(mut seed)) => match random(&mut seed) % 3 {
                        0 => Fate::Refused(ErrorKind::Unavailable),
                        1 => Fate::ReplyLost,
                        _ => Fate::Late,
                    },
                    _ => Fate::Refused(ErrorKind::Unavailable),
                });
            }
            _ => {
                clear_up(&bucket).await;
                pause *= 4;
                let seed = Mutex::new(random(&mut seed));
                bucket.weather(move |_| match seed.try_lock() {
                    Ok(mut seed) => Fate::Slow(Duration::from_micros(random(&mut seed) % 3_000)),
                    Err(_) => Fate::Served,
                });
            }
        }
        sleep(pause).await;
    }
    clear_up(&bucket).await;
}

/// Serves everything, after what its clients gave up on was carried out.
async fn clear_up(bucket: &Bucket) {
    bucket.leave();
    while bucket.writing() > 0 {
        tokio::task::yield_now().await;
    }
    bucket.catch_up().await;
    bucket.come_back();
}

async fn story(seed: u64, between: Between, seen: &Arc<Trouble>) {
    let (bucket, folder) = (Bucket::new(), scratch());
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(Worker::new(&bucket, folder.path().to_owned(), between).await);
    }
    let workers = Arc::new(workers);
    let stop = Arc::new(AtomicBool::new(false));
    let weather = tokio::spawn(change_weather(Arc::clone(&bucket), seed, Arc::clone(&stop)));
    let crashes = tokio::spawn({
        let (workers, stop, mut seed) = (Arc::clone(&workers), Arc::clone(&stop), seed ^ 0x5eed);
        async move {
            while !stop.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(2 + random(&mut seed) % 25)).await;
                workers[random(&mut seed) as usize % 2].crash().await;
            }
        }
    });
    let clients = (0..CLIENTS).map(|name| Client::new(name, seed.wrapping_add(name as u64 * 77), &workers, seen));
    let living: Vec<_> = clients.map(|client| tokio::spawn(client.live())).collect();
    let states: Vec<BTreeMap<Key, States>> = join_all(living).await.into_iter().map(Result::unwrap).collect();
    stop.store(true, Ordering::Relaxed);
    weather.await.unwrap();
    crashes.await.unwrap();
    for worker in Arc::into_inner(workers).unwrap() {
        worker.end().await;
    }
    // A worker that starts now finds what is left and hands it over.
    let last: Arc<Fallback> = open(&bucket, folder.path());
    last.sync(&()).await.unwrap();
    assert_eq!(last.pending().await.unwrap().entries, 0);
    assert_eq!(last.conflicts().await.unwrap(), []);
    for (key, states) in states.into_iter().flatten() {
        let there = between.read(&bucket.inner, &key).await;
        assert!(states.contains(&there), "seed {seed}, {key}: {there:?} is in the bucket, not {states:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_the_bucket_ends_with_what_was_confirmed() {
    let seen = Arc::new(Trouble::default());
    for seed in 1..=6 {
        story(seed, Between::Nothing, &seen).await;
    }
    // Nor does it matter that a layer between changes what is kept.
    for seed in 7..=9 {
        story(seed, Between::Xor, &seen).await;
    }
    let counts = [&seen.home, &seen.landed, &seen.redelivered, &seen.unavailable];
    let counts @ [home, landed, redelivered, unavailable] = counts.map(|count| count.load(Ordering::Relaxed));
    println!(
        "fallback: {home} went to the bucket, {landed} landed in the overlay, {redelivered} came again, \
         {unavailable} could not be read"
    );
    assert!(home > 100 && landed > 100 && redelivered > 10 && unavailable > 10, "too little trouble: {counts:?}");
}
