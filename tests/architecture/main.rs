//! Tests of the architecture: which room may use which, and which code may stand where.
//!
//! Each rule is a function from sources to complaints. It is tested on the real tree and on planted violations.
#![allow(clippy::unwrap_used)]

mod imports;
mod test_names;

use std::collections::BTreeMap;
use std::path::Path;

/// The rooms that each room may use; `main` and `cli` may use all rooms.
///
/// A name with a path means that module only.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "wiring",
        &["broker", "broker_url", "config", "provider", "redact", "redis_url", "results", "storage", "telemetry"],
    ),
    ("worker", &["broker", "celery", "commands", "json", "redact", "results", "telemetry"]),
    (
        "results",
        &[
            "broker::Publish",
            "broker::Confirmation",
            "broker::Early",
            "broker::EarlyWord",
            "broker::PublishError",
            "celery",
            "json",
            "redis_url",
            "telemetry::Component",
        ],
    ),
    ("commands", &["instant", "json", "provider", "storage"]),
    ("broker", &["broker_url", "celery::message", "queue_name", "redact"]),
    ("storage", &["charset", "encryption_key", "json", "provider", "quota_rule", "redact", "telemetry"]),
    ("celery", &["charset", "instant", "json"]),
    ("broker_url", &["redact"]),
    ("redis_url", &["redact"]),
    ("config", &["broker_url", "encryption_key", "provider", "queue_name", "quota_rule", "redact", "redis_url"]),
    ("charset", &[]),
    ("encryption_key", &[]),
    ("instant", &[]),
    ("json", &[]),
    ("provider", &[]),
    ("queue_name", &[]),
    ("quota_rule", &[]),
    ("redact", &[]),
    ("telemetry", &["redact"]),
];

/// The rooms inside `storage` that each of them may use; `storage/mod.rs` itself only re-exports names.
///
/// For a file, the first row counts below whose path the file lies.
const STORAGE_ARROWS: &[(&str, &[&str])] = &[
    ("engine", &["backend", "commit_guard", "error", "external", "invalidation", "layers", "object", "reading"]),
    ("external", &["backend", "commit_guard", "error", "files", "object", "reading"]),
    // The overlay of the fallback is a local store.
    ("layers/fallback", &["backend", "backends", "commit_guard", "error", "invalidation", "object"]),
    ("layers", &["backend", "commit_guard", "error", "files", "invalidation", "legacy", "object", "reading"]),
    ("backends", &["backend", "commit_guard", "error", "files", "join", "object"]),
    ("reading", &["backend", "error", "object"]),
    ("legacy", &["object"]),
    ("files", &["error", "object"]),
    ("backend", &["commit_guard", "error", "object"]),
    ("error", &["object"]),
    ("invalidation", &["object"]),
    ("object", &["join"]),
    ("commit_guard", &[]),
    ("join", &[]),
];

/// The names that several modules may use for a public type, each with its reason.
const SHARED_NAMES: &[(&str, &str)] = &[
    (
        "Admission",
        "whether a command may run, by the journal; whether a request may be sent, by the circuit breaker of a store",
    ),
    ("Answer", "of a command; of Google's service, in its error"),
    ("Arguments", "each subcommand has its own, as clap wants them, and a call of a task has some"),
    ("Content", "of a publication that is owed; of a value to be stored"),
    ("Envelope", "around a parked publication; of an encrypted object"),
    ("Error", "each room has one error, named together with its room"),
    ("ErrorKind", "the kind of a room's error"),
    ("Fault", "of a message that cannot be read; of an address that takes nothing"),
    ("Ledger", "of a journal's commands; of a quota's bytes"),
    ("Outcome", "of a command; of a request to S3"),
    ("Part", "of a batch that came back; of an upload to S3"),
    ("QueueType", "the setting, and what the broker is told"),
    ("Reply", "what the broker or S3 says of a fault"),
    ("Result", "the alias that goes with a room's error"),
    ("State", "of a task, in its reply; of a session"),
];

/// The most code a file may have above its tests.
const MAX_CODE_LINES: usize = 500;

/// One file of `src`, as the compiler sees it outside tests.
struct Source {
    /// The path below `src`, with `/`.
    path: String,
    /// The code without comments, without the contents of quotes, and without the test module.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = strip(text);
        let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
        Self { path: path.to_owned(), code }
    }

    /// Returns the room; for the two files outside of rooms, `main` or `lib`.
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// Returns the depth of the module: 1 for `room/mod.rs`, 2 for `room/file.rs`.
    fn depth(&self) -> usize {
        let path = self.path.trim_end_matches("/mod.rs").trim_end_matches(".rs");
        path.split('/').count()
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    fn complain(&self, what: &str) -> String {
        format!("src/{}: {what}", self.path)
    }

    /// Tells whether the code holds this whole word.
    fn has_word(&self, word: &str) -> bool {
        words(&self.code).any(|found| found == word)
    }
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character: char| !character.is_alphanumeric() && character != '_')
}

/// Removes comments and the contents of quotes, and keeps the line breaks.
fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (kept, skipped) = if rest.starts_with("//") {
            ("", rest.find('\n').unwrap_or(rest.len()))
        } else if rest.starts_with("/*") {
            ("", block_comment(rest))
        } else if let Some(length) = raw_text(rest, &out) {
            ("\"\"", length)
        } else if first == '"' {
            ("\"\"", quoted(rest))
        } else if let Some(length) = character(rest) {
            ("' '", length)
        } else {
            (&rest[..first.len_utf8()], first.len_utf8())
        };
        out.push_str(kept);
        if kept.len() != skipped {
            out.extend(rest[..skipped].chars().filter(|character| *character == '\n'));
        }
        rest = &rest[skipped..];
    }
    out
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        let here = &rest[at..];
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else if let Some(next) = here.chars().next() {
            at += next.len_utf8();
        } else {
            return at;
        }
    }
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Returns the length of a raw string that begins here; `before` shows whether the `r` ends a longer word.
fn raw_text(rest: &str, before: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let inside = after[hashes..].strip_prefix('"')?;
    if before.ends_with(|character: char| character.is_alphanumeric() || character == '_') {
        return None;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - inside.len();
    Some(inside.find(&end).map_or(rest.len(), |at| start + at + end.len()))
}

/// Returns the length of a character literal that begins here; a lifetime is not a literal.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if inside.starts_with('\\') {
        return inside[2..].find('\'').map(|at| at + 4);
    }
    let first = inside.chars().next()?;
    inside[first.len_utf8()..].starts_with('\'').then_some(first.len_utf8() + 2)
}

/// Returns the items that a file uses from the root of the crate: by `crate::…`, or by as many `super::` as lead there.
fn uses(source: &Source) -> Vec<String> {
    let code: String = source.code.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    let climb = "super::".repeat(source.depth());
    for root in ["crate::", climb.as_str()] {
        for (at, _) in code.match_indices(root) {
            // One `super::` more or less in front is another climb.
            let word_before = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if !word_before {
                found.extend(paths(&code[at + root.len()..]));
            }
        }
    }
    if code.contains("use crate as ") || code.contains("extern crate self") {
        found.push("crate under another name".to_owned());
    }
    found
}

/// Returns the first two segments of the path that begins here, or of each path of a group.
fn paths(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        let (path, group) = rest.split_at(end);
        if let Some(room) = path.strip_suffix("::").filter(|room| !room.contains(':') && group.starts_with('{')) {
            let mut names: Vec<String> = paths(group);
            names.iter_mut().for_each(|name| *name = name.split("::").next().unwrap_or_default().to_owned());
            names.dedup();
            return names.iter().map(|name| format!("{room}::{name}").trim_end_matches("::self").to_owned()).collect();
        }
        return vec![path.split("::").take(2).collect::<Vec<_>>().join("::")];
    };
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                found.extend(paths(group[begin..at].trim_start()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                found.extend(paths(group[begin..at].trim_start()));
                begin = at + 1;
            }
            _ => {}
        }
    }
    found.retain(|path| !path.is_empty());
    found
}

fn wrong_arrows(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let Some((room, allowed)) = ARROWS.iter().find(|(room, _)| *room == source.room()) else {
            if !matches!(source.room(), "main" | "lib" | "cli") {
                complaints.push(source.complain("is in no room of the table"));
            }
            continue;
        };
        for path in uses(source) {
            let target = path.split("::").next().unwrap_or_default();
            let fine = target == *room || allowed.iter().any(|allowed| *allowed == target || *allowed == path);
            if !fine {
                complaints.push(source.complain(&format!("{room} may not use {path}")));
            }
        }
    }
    complaints
}

fn wrong_arrows_in_storage(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| source.room() == "storage" && !source.is_test()) {
        let path = imports::module(&source.path)[1..].join("/");
        if path.is_empty() {
            continue;
        }
        let within = |room: &str| path == room || path.starts_with(&format!("{room}/"));
        let Some((room, allowed)) = STORAGE_ARROWS.iter().find(|(room, _)| within(room)) else {
            complaints.push(source.complain("is in no room of the table"));
            continue;
        };
        let own = room.split('/').next().unwrap_or_default();
        let used =
            imports::absolute_paths(source).into_iter().filter(|used| used.first().is_some_and(|it| it == "storage"));
        let mut targets: Vec<String> = used.filter_map(|used| used.into_iter().nth(1)).collect();
        targets.sort_unstable();
        targets.dedup();
        for target in targets.iter().filter(|target| *target != own && !allowed.contains(&target.as_str())) {
            complaints.push(source.complain(&format!("{room} may not use storage::{target}")));
        }
    }
    complaints
}

/// Finds files that use each other in a circle.
fn import_circles(sources: &[Source]) -> Vec<String> {
    let circles = imports::Tree::new(sources).circles();
    circles.into_iter().map(|circle| format!("use each other in a circle: {circle:?}")).collect()
}

/// Finds names that several modules use for a public type.
fn shared_names(sources: &[Source]) -> Vec<String> {
    let mut defined: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        for line in source.code.lines() {
            if let Some(name) = visible_type(line) {
                defined.entry(name).or_default().push(&source.path);
            }
        }
    }
    let allowed = |name: &str| SHARED_NAMES.iter().any(|(allowed, _)| *allowed == name);
    let shared = defined.into_iter().filter(|(name, paths)| paths.len() > 1 && !allowed(name));
    shared.map(|(name, paths)| format!("{name} is defined by {paths:?}")).collect()
}

/// Returns the name of the public type that a line without indentation defines.
fn visible_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(')')?.1,
        None => rest,
    };
    let mut words = words(rest.strip_prefix(' ')?);
    matches!(words.next()?, "struct" | "enum" | "trait" | "type" | "union").then(|| words.next()).flatten()
}

fn misplaced(sources: &[Source], words: &[&str], allowed: impl Fn(&Source) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test() && !allowed(source)) {
        complaints.extend(words.iter().filter(|word| source.has_word(word)).map(|word| source.complain(word)));
    }
    complaints
}

fn queue_client_outside_its_room(sources: &[Source]) -> Vec<String> {
    misplaced(sources, &["lapin"], |source| source.room() == "broker")
}

fn decoders_outside_their_module(sources: &[Source]) -> Vec<String> {
    let decoders = ["flate2", "bzip2", "liblzma", "brotli", "brotli_decompressor", "zstd"];
    misplaced(sources, &decoders, |source| {
        source.path == "celery/body.rs"
            || source.path == "storage/layers/encoded/unpack.rs"
            // This file only compresses.
            || source.path == "storage/layers/encoded/pack.rs"
            || source.path.starts_with("celery/body/")
            || source.path.starts_with("celery/body_")
    })
}

/// Finds uses of the crate `backoff` outside its file; a module of the project may have the same name.
fn backoff_outside_its_file(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test() && source.path != "storage/layers/retry.rs") {
        let code: String = source.code.split_whitespace().collect::<Vec<_>>().join(" ");
        let begins = |path: &str| {
            let part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            code.match_indices(path).any(|(at, _)| !code[..at].ends_with(part))
        };
        let module = code.contains("mod backoff;");
        if begins("::backoff") || (!module && (begins("backoff::") || code.contains("use backoff "))) {
            complaints.push(source.complain("uses the crate backoff"));
        }
    }
    complaints
}

fn settings_read_elsewhere(sources: &[Source]) -> Vec<String> {
    let readers = ["var", "var_os", "vars", "vars_os", "args", "args_os"];
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !matches!(source.room(), "config" | "main")) {
        let code: String = source.code.split_whitespace().collect();
        let read = readers.iter().any(|reader| {
            code.match_indices("env::").any(|(at, found)| words(&code[at + found.len()..]).next() == Some(reader))
        });
        if read || code.contains("env::{") || code.contains("usestd::env;") || source.has_word("toml") {
            complaints.push(source.complain("reads settings"));
        }
    }
    complaints
}

fn unwraps(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let code: String = source.code.split_whitespace().collect();
        for call in [".unwrap()", ".expect(\"", ".expect_err(", ".unwrap_err()"] {
            if code.contains(call) {
                complaints.push(source.complain(call));
            }
        }
    }
    complaints
}

/// Finds clocks that do not follow tokio's pause in the room of the worker.
fn clocks_without_pause(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    let in_worker = |source: &&Source| source.room() == "worker" && !source.is_test();
    for source in sources.iter().filter(in_worker).filter(|source| source.path != "worker/clock.rs") {
        let code: String = source.code.split_whitespace().collect();
        let from_std =
            code.split(';').any(|item| item.contains("std::time::") && words(item).any(|it| it == "Instant"));
        if from_std || code.contains("Timestamp::now") || source.has_word("SystemTime") {
            complaints.push(source.complain("reads a clock that does not follow tokio's pause"));
        }
    }
    complaints
}

fn long_files(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        let lines = source.code.lines().filter(|line| !line.trim().is_empty()).count();
        if lines > MAX_CODE_LINES && !source.is_test() {
            complaints.push(source.complain(&format!("{lines} lines of code")));
        }
    }
    complaints
}

/// Reads the files below a folder of the project that have one of these extensions; each with its path, with `/`.
fn files_below(folder: &str, extensions: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut folders, mut files) = (vec![root.join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)) {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}

fn sources() -> Vec<Source> {
    let files = files_below("src", &["rs"]);
    assert!(files.len() > 50, "only {} files found", files.len());
    files.iter().map(|(path, text)| Source::new(path.trim_start_matches("src/"), text)).collect()
}

/// Tests a rule about several files: on the real tree, on sets of files that break it, and on sets that do not.
fn hold_together(rule: fn(&[Source]) -> Vec<String>, bad: &[&[(&str, &str)]], good: &[&[(&str, &str)]]) {
    let planted =
        |files: &[(&str, &str)]| files.iter().map(|(path, text)| Source::new(path, text)).collect::<Vec<Source>>();
    for files in bad {
        assert_eq!(rule(&planted(files)).len(), 1, "{files:?}");
    }
    for files in good {
        let complaints = rule(&planted(files));
        assert!(complaints.is_empty(), "{complaints:?} of {files:?}");
    }
    let complaints = rule(&sources());
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// Tests a rule: on the real tree, on files that break it, and on files that do not.
fn hold(rule: fn(&[Source]) -> Vec<String>, bad: &[(&str, &str)], good: &[(&str, &str)]) {
    for (path, text) in bad {
        assert_eq!(rule(&[Source::new(path, text)]).len(), 1, "{path}: {text}");
    }
    for (path, text) in good {
        let complaints = rule(&[Source::new(path, text)]);
        assert!(complaints.is_empty(), "{complaints:?} of {text}");
    }
    let complaints = rule(&sources());
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn rooms_use_only_what_their_arrows_allow() {
    hold(
        wrong_arrows,
        &[
            ("config/mod.rs", "use crate::json::Json;"),
            ("storage/local/mod.rs", "use crate::{telemetry, config::Settings};"),
            ("storage/local/mod.rs", "use crate::{telemetry::{Metrics, Backend}, celery::{a::{b, c}}};"),
            ("worker/intake/policy.rs", "fn f() { crate::storage::Key::parse(text); }"),
            ("broker/session.rs", "use crate::celery::request::TaskRequest;"),
            ("broker/session.rs", "use crate::celery::{self, message::Message};"),
            ("celery/body.rs", "use super::super::storage::Key;"),
            ("results/rpc.rs", "use crate::broker::{Publish, Session};"),
            ("results/rpc.rs", "use crate::worker::WorkerOptions;"),
            ("celery/mod.rs", "use super::storage::Key;"),
            ("celery/body/zlib.rs", "fn f(x: super::super::super::broker::Session) {}"),
            ("telemetry/mod.rs", "use crate as ours;"),
            ("extra/mod.rs", "fn f() {}"),
        ],
        &[
            ("cli/worker.rs", "use crate::{broker, storage};"),
            ("broker/session.rs", "use crate::celery::message::Message;"),
            ("results/rpc.rs", "use crate::broker::{Confirmation, Publish, PublishError};"),
            ("broker/session.rs", "use crate::celery::message::{Message, Headers};"),
            ("celery/body/zlib.rs", "use super::super::message::Message;"),
            ("json/mod.rs", "// crate::storage\n/* crate::broker */ const A: &str = \"crate::celery\";"),
            ("json/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::storage::Key; }"),
        ],
    );
}

#[test]
fn rooms_inside_storage_use_only_what_their_arrows_allow() {
    hold(
        wrong_arrows_in_storage,
        &[
            ("storage/object/key.rs", "use crate::storage::error::Error;"),
            ("storage/object/key.rs", "use super::super::backend::Backend;"),
            ("storage/backends/gcs/mod.rs", "use crate::storage::layers::Retry;"),
            ("storage/backends/gcs/mod.rs", "use super::super::engine::Engine;"),
            ("storage/layers/retry.rs", "use crate::storage::{backend::Backend, backends::Local};"),
            ("storage/engine/mod.rs", "fn f() { crate::storage::backends::local::x(); }"),
            ("storage/external/mod.rs", "use crate::storage::engine::Engine;"),
            ("storage/extra.rs", "fn f() {}"),
        ],
        &[
            ("storage/layers/fallback/overlay.rs", "use crate::storage::backends::Local;"),
            ("storage/engine/mod.rs", "use crate::storage::{backend::Backend, layers::Breaker};"),
            ("storage/backends/gcs/mod.rs", "use super::http::date; use crate::telemetry::Metrics;"),
            ("storage/mod.rs", "pub use backends::Local;"),
        ],
    );
}

#[test]
fn files_do_not_use_each_other_in_a_circle() {
    hold_together(
        import_circles,
        &[
            &[("celery/a.rs", "use super::b::B;"), ("celery/b.rs", "use crate::celery::a::A;")],
            &[
                ("json/mod.rs", "mod a;\nmod b;\npub use a::A;\npub(crate) use self::b::{B, C};"),
                ("json/a.rs", "use super::{x, C};"),
                ("json/b.rs", "fn f() { crate::json::A::new(); }"),
            ],
            &[
                ("config/a.rs", "use crate::config::{b::{B, self}};"),
                ("config/b.rs", "use super::c;"),
                ("config/c/mod.rs", "use super::super::config::a::A;"),
            ],
            &[
                ("broker/mod.rs", "mod session;\nmod topology;\npub use topology::Topology;"),
                ("broker/session.rs", "use super::{Error, Topology};"),
                ("broker/topology.rs", "use super::session::Link;"),
            ],
            &[
                ("worker/delivery/outbox.rs", "use crate::worker::intake::policy::Policy;"),
                ("worker/intake/policy/mod.rs", "use crate::worker::events;"),
                ("worker/events.rs", "fn f() { super::delivery::outbox::push(); }"),
            ],
        ],
        &[
            &[("json/mod.rs", "mod a;\npub use a::A;\npub struct B;"), ("json/a.rs", "use super::B;")],
            &[
                ("celery/a.rs", "use super::b::B;"),
                ("celery/b.rs", "use crate::json::A;\n#[cfg(test)]\nmod tests { use super::a::A; }"),
            ],
            &[("worker/a.rs", "use super::b::B;"), ("worker/b.rs", "use super::c::C;"), ("worker/c.rs", "fn f() {}")],
        ],
    );
}

#[test]
fn a_name_means_one_type() {
    hold_together(
        shared_names,
        &[
            &[("celery/a.rs", "pub struct Found;"), ("config/b.rs", "pub(in crate::config) enum Found { A }")],
            &[("celery/a.rs", "pub(super) type Found<T> = T;"), ("json/b.rs", "pub trait Found {}")],
            &[("worker/a.rs", "pub(in crate::worker) struct Job;"), ("worker/b/c.rs", "pub(super) struct Job;")],
            &[("worker/a.rs", "pub struct Job;"), ("broker/b.rs", "pub struct Job;")],
        ],
        &[
            &[("celery/a.rs", "pub struct Found;"), ("config/b.rs", "struct Found;\npub fn found() {}")],
            &[("celery/a.rs", "pub struct Error;"), ("config/b.rs", "pub struct Error;")],
        ],
    );
}

#[test]
fn only_the_broker_room_knows_the_queue_client() {
    hold(
        queue_client_outside_its_room,
        &[("worker/mod.rs", "use lapin::Channel;"), ("celery/a.rs", "fn f(c: &lapin::Channel) {}")],
        &[("broker/mod.rs", "use lapin::Channel;"), ("config/a.rs", "const A: &str = \"lapin=info\"; // lapin")],
    );
}

#[test]
fn compressed_bodies_are_opened_in_one_module() {
    hold(
        decoders_outside_their_module,
        &[("celery/request.rs", "use flate2::read::ZlibDecoder;"), ("commands/store.rs", "zstd::decode_all(x);")],
        &[("celery/body.rs", "use bzip2::read::BzDecoder;"), ("celery/body/open.rs", "zstd::x();")],
    );
}

#[test]
fn only_the_retries_know_backoff() {
    hold(
        backoff_outside_its_file,
        &[
            ("worker/mod.rs", "use backoff::ExponentialBackoff;"),
            ("worker/mod.rs", "use {std::fmt, backoff::ExponentialBackoff};"),
            ("worker/mod.rs", "use backoff as waits;"),
            ("storage/gcs/mod.rs", "fn f() { backoff::future::retry(a, b); }"),
            ("broker/mod.rs", "mod backoff;\nuse ::backoff::Clock;"),
        ],
        &[
            ("storage/layers/retry.rs", "use backoff::backoff::Backoff;"),
            ("broker/mod.rs", "mod backoff;\npub use backoff::Backoff;"),
            ("worker/mod.rs", "use crate::broker::backoff::Backoff;\nfn f() { let mut backoff = 1; backoff.reset(); }"),
        ],
    );
}

#[test]
fn settings_are_read_in_one_room() {
    hold(
        settings_read_elsewhere,
        &[
            ("worker/mod.rs", "let home = std::env::var(\"HOME\");"),
            ("worker/mod.rs", "use std::env::{self};"),
            ("cli/mod.rs", "let filter = std::env::var(\"RUST_LOG\");"),
            ("broker/mod.rs", "use std::env;\nfn f() { env\n::vars_os(); }"),
            ("storage/mod.rs", "let table: toml::Table = text.parse()?;"),
        ],
        &[("config/mod.rs", "std::env::var(\"A\");"), ("telemetry/a.rs", "env!(\"CARGO_PKG_VERSION\");")],
    );
}

#[test]
fn the_worker_has_two_clocks() {
    hold(
        clocks_without_pause,
        &[
            ("worker/a.rs", "use std::time::{Duration, Instant};"),
            ("worker/a.rs", "let now = std::time::Instant::now();"),
            ("worker/a.rs", "let now = jiff::Timestamp::now();"),
            ("worker/a.rs", "use std::time::SystemTime;"),
        ],
        &[
            ("worker/a.rs", "use std::time::Duration;\nuse tokio::time::Instant;\nlet now = Instant::now();"),
            ("worker/clock.rs", "Timestamp::now()"),
            ("broker/a.rs", "use std::time::{Duration, Instant};"),
        ],
    );
}

#[test]
fn nothing_panics_on_purpose_outside_tests() {
    hold(
        unwraps,
        &[("worker/mod.rs", "let a = b\n    .unwrap();"), ("json/mod.rs", "let a = b.expect(\"always\");")],
        &[
            ("json/parse.rs", "self.expect(b':')?; a.unwrap_or(1); // .unwrap()"),
            ("json/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests { fn g() { a.unwrap(); } }"),
            ("worker/intake/policy/tests.rs", "a.unwrap();"),
        ],
    );
}

#[test]
fn files_stay_readable() {
    let long = "fn f() {}\n".repeat(MAX_CODE_LINES + 1);
    let fine = format!("{}{}", "fn f() {}\n".repeat(MAX_CODE_LINES), "\n// a remark\n".repeat(9));
    let tested = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    hold(long_files, &[("json/mod.rs", &long)], &[("json/mod.rs", &fine), ("json/mod.rs", &tested)]);
}

#[test]
fn comments_and_quotes_are_not_code() {
    for (text, code) in [
        ("a // b\nc", "a \nc"),
        ("a /* b /* c */ d */ e", "a  e"),
        (r#"f("x \" y", z)"#, r#"f("", z)"#),
        ("f(r#\"x \" y\"#, br\"q\") for_r\"s\"", "f(\"\", \"\") for_r\"\""),
        ("f('\"', '\\'', 'é', '\\u{1F600}') g::<'a>()", "f(' ', ' ', ' ', ' ') g::<'a>()"),
        ("\"two\nlines\" x", "\"\"\n x"),
    ] {
        assert_eq!(strip(text), code, "{text}");
    }
}
