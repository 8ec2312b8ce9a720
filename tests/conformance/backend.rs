//! What every backend must do, over `&dyn Backend` alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use filestorage::storage::{
    Attributes, Backend, ByteRange, CommitGuard, Condition, DeleteOptions, ErrorKind, GetOptions, Key, Kind, Object,
    Page, PutOptions, Result,
};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::copies::copies;
use crate::support::{Tally, all, bytes, expired, key, keys, noise, object, text};

/// How a stack keeps values in another form than they are given in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codec {
    /// What attributes call it.
    pub(crate) name: &'static str,
    /// So many more bytes are kept than the value has.
    pub(crate) overhead: u64,
}

/// What places are allowed to differ in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    /// Removes only the generation that is named; else it refuses to, unless it may be lenient.
    pub(crate) conditional_delete: bool,
    /// An unconditional removal tells what it removed; else two at once may both have found the object.
    pub(crate) exact_removal: bool,
    /// Looks at the condition before it asks the commit guard; else the guard may be passed by a write that is then refused.
    pub(crate) condition_before_guard: bool,
    /// Every question is a request over the wire: fewer of the many combinations are asked.
    pub(crate) remote: bool,
    /// Conditions hold against writers who write, at the same time, the very bytes that are there already.
    pub(crate) same_bytes: bool,
    /// The server behind the place keeps names in folders, and folders do not mix with objects of the same name: one is
    /// lost when both are written at once, and `if_absent` finds an object where only a folder is.
    pub(crate) folders: bool,
    /// Values are kept in another form: attributes of the bytes kept say so, and nothing else does.
    pub(crate) codec: Option<Codec>,
    /// Values that get smaller by that are kept compressed; all others as they are given.
    pub(crate) compressing: bool,
    /// Values are kept encrypted, whether or not they are compressed.
    pub(crate) encrypting: bool,
    /// Unconditional writes wait in an overlay, and receipts say so.
    pub(crate) pending: bool,
    /// Says why the server behind the place cannot keep a legal key; such keys are left out.
    pub(crate) unfit: fn(&Key) -> Option<&'static str>,
}

impl Profile {
    /// A place of this process or machine.
    pub(crate) const NEAR: Self = Self {
        conditional_delete: true,
        condition_before_guard: true,
        remote: false,
        exact_removal: true,
        same_bytes: true,
        folders: false,
        codec: None,
        compressing: false,
        encrypting: false,
        pending: false,
        unfit: |_| None,
    };

    /// Attributes as text, those of the bytes kept as if these were the value's own.
    fn text(&self, attributes: &Attributes) -> String {
        match self.codec {
            Some(codec) => {
                assert_eq!(attributes.compression.as_deref(), Some(codec.name));
                assert_eq!(attributes.stored_size, attributes.size + codec.overhead);
            }
            None if self.encrypting => {
                assert!(attributes.encrypted && !attributes.is_sealed(), "{attributes:?}");
                let chunks = attributes.size.div_ceil(65_536).max(1);
                match attributes.compression {
                    Some(_) => assert!(self.compressing && attributes.stored_size < attributes.size + 16 * chunks),
                    None => assert_eq!(attributes.stored_size, attributes.size + 16 * chunks),
                }
            }
            None if self.compressing && attributes.compression.is_some() => {
                assert!(attributes.stored_size < attributes.size, "{attributes:?}");
            }
            None => return text(attributes),
        }
        assert_ne!(attributes.stored_checksum, attributes.checksum);
        text(&Attributes {
            compression: None,
            encrypted: false,
            stored_size: attributes.size,
            stored_checksum: attributes.checksum,
            ..attributes.clone()
        })
    }

    /// Bytes of this number that only a profile of compression makes smaller.
    pub(crate) fn content(&self, size: usize) -> Vec<u8> {
        let mut content = noise(size, size as u64);
        if self.compressing {
            content.iter_mut().for_each(|byte| *byte &= 0x8f);
        }
        content
    }

    /// The keys that the server can keep; says which are left out.
    pub(crate) fn keys(&self) -> BTreeSet<Key> {
        let mut left_out = BTreeMap::<_, Vec<Key>>::new();
        let fits =
            |key: &Key| (self.unfit)(key).map(|why| left_out.entry(why).or_default().push(key.clone())).is_none();
        let keys = keys().into_iter().filter(fits).collect();
        for (why, keys) in left_out {
            let names: Vec<_> = keys.iter().map(|key| key.as_str().chars().take(12).collect::<String>()).collect();
            println!(
                "conformance: left out {} keys, since {why}: {}…",
                keys.len(),
                names[..names.len().min(5)].join(", ")
            );
        }
        keys
    }
}

/// Runs all of it; the two may be one backend or two instances on one place.
pub(crate) async fn suite(one: &Arc<dyn Backend>, other: &Arc<dyn Backend>, profile: Profile, tally: &Tally) {
    one.probe().await.unwrap();
    values(&**one, &**other, profile, tally).await;
    parts(&**one, &**other, profile, tally).await;
    every_key(&**one, &**other, profile, tally).await;
    conditions(&**one, profile, tally).await;
    commit_guards(&**one, profile, tally).await;
    listing(&**one, tally).await;
    copies(one, other, profile, tally).await;
    races(one, other, profile, tally).await;
    overwritten_while_read(one, other, profile, tally).await;
}

/// Runs what layers over a place could spoil, where the place itself has been through all of it.
pub(crate) async fn short_suite(one: &Arc<dyn Backend>, other: &Arc<dyn Backend>, profile: Profile, tally: &Tally) {
    one.probe().await.unwrap();
    values(&**one, &**other, profile, tally).await;
    conditions(&**one, profile, tally).await;
    commit_guards(&**one, profile, tally).await;
    copies(one, other, profile, tally).await;
    races(one, other, profile, tally).await;
    overwritten_while_read(one, other, profile, tally).await;
}

fn when(condition: Condition) -> PutOptions {
    PutOptions { condition, ..PutOptions::default() }
}

fn only(generation: &str) -> DeleteOptions {
    DeleteOptions { generation: Some(generation.to_owned()), ..DeleteOptions::default() }
}

/// Waits for all of it, some at a time: a place over the wire has a connection for each.
async fn wait_for<T>(work: impl Iterator<Item = impl Future<Output = Result<T>>>) {
    stream::iter(work).buffer_unordered(64).try_for_each(|_| async { Ok(()) }).await.unwrap();
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind
}

/// Puts. What is answered is what a look tells afterwards, in every part.
async fn put(
    (one, other): (&dyn Backend, &dyn Backend),
    key: &Key,
    object: &Object,
    options: &PutOptions,
    tally: &Tally,
) {
    let stored = one.put(key, object, options).await.unwrap();
    let found = other.stat(key).await.unwrap().unwrap();
    tally.equal(all(&stored), all(&found));
    // What has reached the place does not wait again.
    assert!(stored.info.pending || !found.info.pending, "{stored:?}, {found:?}");
    assert!(!stored.info.decoded && !found.info.decoded, "no payload is beside them");
}

async fn values(one: &dyn Backend, other: &dyn Backend, profile: Profile, tally: &Tally) {
    let it = key("values/it");
    for size in [0, 1, 200, 3_000, 4_095, 4_096, 4_097, 65_000, 65_536, 70_000, 1 << 20, (8 << 20) - 1, 8 << 20] {
        let wanted = object(profile.content(size));
        put((one, other), &it, &wanted, &PutOptions::default(), tally).await;
        let found = other.get(&it, GetOptions::default()).await.unwrap().unwrap();
        assert!(bytes(found.clone()).await == bytes(wanted.clone()).await, "{size} bytes");
        tally.equal(profile.text(&found.attributes), text(&wanted.attributes));
        tally.equal(other.stat(&it).await.unwrap().map(|it| profile.text(&it)), Some(text(&wanted.attributes)));
    }
    for payload in ["\n", "\n\n{}\n", "{\"format\":1}\n"] {
        put((one, other), &it, &object(payload), &PutOptions::default(), tally).await;
        tally.equal(&*bytes(other.get(&it, GetOptions::default()).await.unwrap().unwrap()).await, payload.as_bytes());
    }
    one.flush(&it).await.unwrap();
    tally.equal(other.delete(&it, &DeleteOptions::default()).await.unwrap().found, true);
    tally.equal(one.get(&it, GetOptions::default()).await.unwrap().is_none(), true);
    tally.equal(one.stat(&it).await.unwrap().is_none(), true);
    tally.equal(one.delete(&it, &DeleteOptions::default()).await.unwrap().found, false);
    one.flush(&it).await.unwrap();
    one.flush(&key("never/was/there")).await.unwrap();
}

/// Every combination of size, range and limit against the plain definition.
async fn parts(one: &dyn Backend, other: &dyn Backend, profile: Profile, tally: &Tally) {
    let it = key("parts/it");
    let sizes: &[usize] =
        if profile.remote { &[0, 5, 70_000] } else { &[0, 1, 5, 65_000, 65_536, 70_000, 300_000, 600_000] };
    for &size in sizes {
        let wanted = object(profile.content(size));
        one.put(&it, &wanted, &PutOptions::default()).await.unwrap();
        for offset in [0, 1, 4, 64_000, 65_000, 65_536, 262_144, 599_999, 600_000, u64::MAX] {
            for length in [Some(0), Some(1), Some(4), Some(64_900), Some(300_000), Some(u64::MAX), None] {
                let begin = usize::try_from(offset).unwrap_or(size).min(size);
                let end = length.map_or(size, |length| begin + usize::try_from(length).unwrap().min(size - begin));
                for limit in [None, Some(0), Some(3), Some(4), Some(64_900), Some(1 << 20)] {
                    let want = GetOptions {
                        range: Some(ByteRange { offset, length }),
                        limit,
                        spooled: offset % 2 == 1,
                        ..GetOptions::default()
                    };
                    let found = other.get(&it, want.clone()).await;
                    if limit.is_some_and(|limit| (end - begin) as u64 > limit) {
                        let error = found.unwrap_err();
                        assert!(error.kind == ErrorKind::Invalid && error.message().contains("`offset`"), "{error}");
                    } else {
                        let found = found.unwrap().unwrap();
                        assert_eq!(profile.text(&found.attributes), text(&wanted.attributes));
                        assert!(bytes(found).await == profile.content(size)[begin..end], "{want:?} of {size}");
                    }
                    tally.case();
                }
            }
        }
        let whole = |limit| other.get(&it, GetOptions { limit: Some(limit), ..GetOptions::default() });
        tally.equal(whole(size as u64).await.unwrap().unwrap().payload.len(), size as u64);
        if size > 0 {
            let error = whole(size as u64 - 1).await.unwrap_err();
            let names = [size.to_string(), (size - 1).to_string(), "`offset` and `length`".to_owned()];
            assert!(names.iter().all(|name| error.message().contains(name)), "{error}");
            tally.equal(error.kind, ErrorKind::Invalid);
        }
    }
    let mut json = object("[1,2]");
    json.attributes.kind = Kind::Json;
    one.put(&it, &json, &PutOptions::default()).await.unwrap();
    let error = other.get(&it, GetOptions { limit: Some(4), ..GetOptions::default() }).await.unwrap_err();
    assert!(error.kind == ErrorKind::Invalid && !error.message().contains("`offset`"), "{error}");
    let part = GetOptions { range: Some(ByteRange::default()), ..GetOptions::default() };
    tally.equal(kind(other.get(&it, part.clone()).await), ErrorKind::Invalid);
    assert!(one.delete(&it, &DeleteOptions::default()).await.unwrap().found);
    let none = GetOptions { limit: Some(0), ..part };
    tally.equal(one.get(&it, none).await.unwrap().is_none(), true);
}

async fn every_key(one: &dyn Backend, other: &dyn Backend, profile: Profile, tally: &Tally) {
    let keys: Vec<Key> = profile.keys().into_iter().collect();
    let put = async |key: &Key| one.put(key, &object(key.as_str().to_owned()), &PutOptions::default()).await;
    if profile.folders {
        for key in &keys {
            put(key).await.unwrap();
        }
    } else {
        wait_for(keys.iter().map(put)).await;
    }
    for key in &keys {
        let found =
            other.get(key, GetOptions::default()).await.unwrap().unwrap_or_else(|| panic!("{key:?} is not there"));
        tally.equal(&*bytes(found).await, key.as_str().as_bytes());
    }
    let listing = other.list(&Page::default()).await.unwrap();
    let found: BTreeSet<_> = listing.entries.iter().map(|entry| &entry.key).collect();
    tally.equal(keys.iter().filter(|key| !found.contains(key)).collect::<Vec<_>>(), Vec::new());
    tally.equal(found.into_iter().filter(|key| keys.binary_search(key).is_err()).collect::<Vec<_>>(), Vec::new());
    tally.equal(listing.entries.iter().map(|entry| &entry.key).eq(&keys), true);
    tally.equal((listing.foreign, listing.more), (0, false));
    pages(one, &keys, profile, tally).await;
    for (position, key) in keys.iter().enumerate() {
        assert!(one.delete(key, &DeleteOptions::default()).await.unwrap().found);
        if let Some(next) = keys.get(position + 1) {
            assert!(other.stat(next).await.unwrap().is_some(), "{next:?} went with {key:?}");
        }
        tally.case();
    }
    tally.equal(other.list(&Page::default()).await.unwrap().entries.len(), 0);
}

/// Every combination of prefix, start and limit against the plain definition.
async fn pages(one: &dyn Backend, keys: &[Key], profile: Profile, tally: &Tally) {
    let long = "x".repeat(198);
    for prefix in ["", "a", "a/", "a.obj", "a.obj/", "é", "x", "x/", &long, &long[..70], "\u{10ffff}", "none"] {
        for after in
            ["", "a", "a/", "a.obj", "a/b", &format!("{long} "), &format!("{long}é"), "x/x", "\u{10ffff}\u{10ffff}"]
        {
            let limits: &[Option<usize>] = if profile.remote {
                &[None, Some(3)]
            } else {
                &[None, Some(0), Some(1), Some(3), Some(50), Some(100_000)]
            };
            for &limit in limits {
                let start_after = (!after.is_empty()).then(|| after.to_owned());
                let page = Page { prefix: prefix.to_owned(), start_after, limit, ..Page::default() };
                let mut wanted: Vec<_> =
                    keys.iter().filter(|key| key.as_str().starts_with(prefix) && key.as_str() > after).collect();
                let more = wanted.len() > limit.unwrap_or(usize::MAX);
                wanted.truncate(limit.unwrap_or(usize::MAX));
                let found = one.list(&page).await.unwrap();
                assert!(found.entries.iter().map(|entry| &entry.key).eq(wanted), "{page:?}: {found:?}");
                assert_eq!(found.more, more, "{page:?}");
                tally.case();
            }
        }
    }
}

async fn listing(one: &dyn Backend, tally: &Tally) {
    let mut keys: Vec<Key> =
        (0..2_500).map(|number| key(&format!("many/{}/{number}", ["a", "b c", "ü"][number % 3]))).collect();
    wait_for(keys.iter().map(async |key| one.put(key, &object("x"), &PutOptions::default()).await)).await;
    let gone = key("many/expired");
    let gone_object = expired("x");
    let expiry = gone_object.attributes.expires_at;
    one.put(&gone, &gone_object, &PutOptions::default()).await.unwrap();
    keys.push(gone.clone());
    keys.sort_unstable();
    let (mut found, mut page) = (Vec::new(), Page { prefix: "many/".to_owned(), limit: Some(700), ..Page::default() });
    loop {
        let listing = one.list(&page).await.unwrap();
        page.start_after = listing.entries.last().map(|entry| entry.key.as_str().to_owned());
        found.extend(listing.entries);
        if !listing.more {
            break;
        }
    }
    tally.equal(found.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>(), keys.clone());
    tally.equal(found.iter().find(|entry| entry.key == gone).unwrap().expires_at, expiry);
    tally.equal(found.iter().filter(|entry| entry.expires_at.is_some()).count(), 1);
    wait_for(keys.iter().map(async |key| one.delete(key, &DeleteOptions::default()).await)).await;
}

async fn conditions(one: &dyn Backend, profile: Profile, tally: &Tally) {
    let it = key("conditions/it");
    let first = object("1");
    let generation = first.attributes.generation.clone();
    let exactly = |generation: &str| when(Condition::Generation(generation.to_owned()));
    tally.equal(kind(one.put(&it, &object("0"), &exactly("g")).await), ErrorKind::Precondition);
    tally.equal(one.stat(&it).await.unwrap().is_none(), true);
    if profile.conditional_delete {
        tally.equal(one.delete(&it, &only("g")).await.unwrap().found, false);
    }
    put((one, one), &it, &first, &when(Condition::Absent), tally).await;
    tally.equal(kind(one.put(&it, &object("2"), &when(Condition::Absent)).await), ErrorKind::Precondition);
    tally.equal(kind(one.put(&it, &object("2"), &exactly("g")).await), ErrorKind::Precondition);
    if profile.conditional_delete {
        tally.equal(kind(one.delete(&it, &only("g")).await), ErrorKind::Precondition);
    } else {
        tally.equal(kind(one.delete(&it, &only(&generation)).await), ErrorKind::Invalid);
    }
    let only = |generation: &str| DeleteOptions { lenient: !profile.conditional_delete, ..only(generation) };
    tally.equal(kind(one.delete(&it, &only("g")).await), ErrorKind::Precondition);
    tally.equal(&*bytes(one.get(&it, GetOptions::default()).await.unwrap().unwrap()).await, b"1");
    put((one, one), &it, &object("2"), &exactly(&generation), tally).await;
    tally.equal(kind(one.put(&it, &object("3"), &exactly(&generation)).await), ErrorKind::Precondition);
    let now = one.stat(&it).await.unwrap().unwrap().generation;
    tally.equal(now == generation, false);
    tally.equal(one.delete(&it, &only(&now)).await.unwrap().found, true);
    // An expired object is absent, and has no generation a store could name, but one that a clean-up can.
    let past = expired("4");
    let generation = past.attributes.generation.clone();
    put((one, one), &it, &past, &PutOptions::default(), tally).await;
    tally.equal(&*bytes(one.get(&it, GetOptions::default()).await.unwrap().unwrap()).await, b"4");
    tally.equal(kind(one.put(&it, &object("5"), &exactly(&generation)).await), ErrorKind::Precondition);
    put((one, one), &it, &object("5"), &when(Condition::Absent), tally).await;
    tally.equal(kind(one.delete(&it, &only(&generation)).await), ErrorKind::Precondition);
    put((one, one), &it, &past, &PutOptions::default(), tally).await;
    tally.equal(one.delete(&it, &only(&generation)).await.unwrap().found, true);
    // Another key's object plays no part.
    let absent = if profile.folders { PutOptions::default() } else { when(Condition::Absent) };
    one.put(&key("conditions"), &object("6"), &absent).await.unwrap();
    one.put(&key("conditions/it/x"), &object("7"), &when(Condition::Absent)).await.unwrap();
    tally.equal(one.delete(&key("conditions"), &DeleteOptions::default()).await.unwrap().found, true);
    tally.equal(one.delete(&key("conditions/it/x"), &DeleteOptions::default()).await.unwrap().found, true);
}

async fn commit_guards(one: &dyn Backend, profile: Profile, tally: &Tally) {
    let it = key("guards/it");
    let abandoned = || {
        let commit_guard = CommitGuard::default();
        assert!(commit_guard.abandon());
        commit_guard
    };
    tally.equal(
        kind(one.put(&it, &object("1"), &PutOptions { commit_guard: abandoned(), ..PutOptions::default() }).await),
        ErrorKind::Abandoned,
    );
    tally.equal(one.stat(&it).await.unwrap().is_none(), true);
    let commit_guard = CommitGuard::default();
    one.put(&it, &object("2"), &PutOptions { commit_guard: commit_guard.clone(), ..PutOptions::default() })
        .await
        .unwrap();
    tally.equal(commit_guard.abandon(), false);
    tally.equal(
        kind(one.put(&it, &object("3"), &PutOptions { commit_guard: abandoned(), ..PutOptions::default() }).await),
        ErrorKind::Abandoned,
    );
    let how = DeleteOptions { commit_guard: abandoned(), ..DeleteOptions::default() };
    tally.equal(kind(one.delete(&it, &how).await), ErrorKind::Abandoned);
    tally.equal(&*bytes(one.get(&it, GetOptions::default()).await.unwrap().unwrap()).await, b"2");
    // A condition that does not hold leaves the commit guard open: nothing was committed.
    let commit_guard = CommitGuard::default();
    let how = PutOptions { condition: Condition::Absent, commit_guard: commit_guard.clone(), ..PutOptions::default() };
    tally.equal(kind(one.put(&it, &object("4"), &how).await), ErrorKind::Precondition);
    if profile.condition_before_guard {
        tally.equal(commit_guard.abandon(), true);
    }
    assert!(one.delete(&it, &DeleteOptions::default()).await.unwrap().found);
}

async fn races(one: &Arc<dyn Backend>, other: &Arc<dyn Backend>, profile: Profile, tally: &Tally) {
    for round in 0..if profile.remote { 40 } else { 200 } {
        let it = key(&format!("races/{}", round % 7));
        let condition = match one.stat(&it).await.unwrap() {
            None => Condition::Absent,
            Some(present) => Condition::Generation(present.generation),
        };
        let payload = |number| if profile.same_bytes { "x".to_owned() } else { format!("{round} {number}") };
        let contenders: Vec<_> =
            (0..4).map(|number| (if number % 2 == 0 { one } else { other }, object(payload(number)))).collect();
        let tasks = contenders.iter().map(|(backend, object)| {
            let (backend, object, it, how) = (Arc::clone(backend), object.clone(), it.clone(), when(condition.clone()));
            tokio::spawn(async move { backend.put(&it, &object, &how).await })
        });
        let outcomes = try_join_all(tasks).await.unwrap();
        let winners: Vec<_> = (0..4).filter(|&number| outcomes[number].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let losers = outcomes.into_iter().filter_map(Result::err);
        assert!(losers.into_iter().all(|error| error.kind == ErrorKind::Precondition));
        let winner = &contenders[winners[0]].1.attributes.generation;
        tally.equal(&one.stat(&it).await.unwrap().unwrap().generation, winner);
        if round % 3 == 0 {
            let deletes = [one, other].map(|backend| {
                let (backend, it) = (Arc::clone(backend), it.clone());
                tokio::spawn(async move { backend.delete(&it, &DeleteOptions::default()).await.unwrap() })
            });
            let removed = try_join_all(deletes).await.unwrap();
            let found = removed.into_iter().filter(|removed| removed.found).count();
            tally.equal(found == 1 || (!profile.exact_removal && found > 0), true);
        }
    }
    for number in 0..7 {
        one.delete(&key(&format!("races/{number}")), &DeleteOptions::default()).await.unwrap();
    }
}

async fn overwritten_while_read(one: &Arc<dyn Backend>, other: &Arc<dyn Backend>, profile: Profile, tally: &Tally) {
    let it = key("mixed/it");
    one.put(&it, &object(vec![b'z'; 9]), &PutOptions::default()).await.unwrap();
    let writer = {
        let (one, it) = (Arc::clone(one), it.clone());
        tokio::spawn(async move {
            for round in 0..if profile.remote { 60 } else { 300_usize } {
                let payload = vec![b'a' + (round % 26) as u8; [100, 5_000, 300_000][round % 3]];
                one.put(&it, &object(payload), &PutOptions::default()).await.unwrap();
            }
        })
    };
    while !writer.is_finished() {
        let found = other.get(&it, GetOptions::default()).await.unwrap().unwrap();
        assert_eq!(found.attributes.size, found.payload.len());
        assert!(bytes(found).await.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(other.stat(&it).await.unwrap().is_some());
        tally.case();
    }
    writer.await.unwrap();
    one.delete(&it, &DeleteOptions::default()).await.unwrap();
}
