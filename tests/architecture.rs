//! The shape of the sources: which room may use which, and what may be written where.
//!
//! Every rule is a function from sources to complaints, tried on the real tree and on a planted violation.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// What each room may use of the others; `main` and `cli` may use everything.
///
/// A name with a path is that module only.
const ARROWS: &[(&str, &[&str])] = &[
    ("worker", &["broker", "celery", "commands", "json", "redact", "telemetry"]),
    ("commands", &["instant", "json", "storage"]),
    ("broker", &["broker_url", "celery::message", "redact"]),
    ("storage", &["charset", "redact", "telemetry"]),
    ("celery", &["charset", "instant", "json"]),
    ("broker_url", &["redact"]),
    ("config", &["broker_url", "redact"]),
    ("charset", &[]),
    ("instant", &[]),
    ("json", &[]),
    ("redact", &[]),
    ("telemetry", &["redact"]),
];

/// The most code a file may have above its tests.
const MAX_CODE_LINES: usize = 500;

/// One file of `src`, as the compiler sees it outside tests.
struct Source {
    /// Below `src`, with `/`.
    path: String,
    /// Without comments, without what stands in quotes, without the test module.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = strip(text);
        let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned();
        Self { path: path.to_owned(), code }
    }

    /// The room, or `main` and `lib` for the two files outside.
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// How many modules deep the file is: 1 for `room/mod.rs`, 2 for `room/file.rs`.
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

    /// Tells whether the code has this word, not as a part of a longer one.
    fn has_word(&self, word: &str) -> bool {
        words(&self.code).any(|found| found == word)
    }
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character: char| !character.is_alphanumeric() && character != '_')
}

/// Blanks comments and the inside of quotes, keeping lines.
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

/// Length of a raw string that begins here; `before` tells whether the `r` ends a longer word.
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

/// Length of a character literal that begins here; a lifetime is none.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if inside.starts_with('\\') {
        return inside[2..].find('\'').map(|at| at + 4);
    }
    let first = inside.chars().next()?;
    inside[first.len_utf8()..].starts_with('\'').then_some(first.len_utf8() + 2)
}

/// Finds what a file uses of the crate by its root: `crate::…` and enough `super::` to climb there.
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

/// The first two segments of the path that begins here, or of each path of a group.
fn paths(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(rest.len());
        return vec![rest[..end].split("::").take(2).collect::<Vec<_>>().join("::")];
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
            || source.path == "storage/unpack.rs"
            || source.path.starts_with("celery/body/")
            || source.path.starts_with("celery/body_")
    })
}

/// The crate, that is; a module of ours may bear the same name.
fn backoff_outside_its_file(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test() && source.path != "storage/retry.rs") {
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
    for source in sources.iter().filter(|source| !matches!(source.room(), "config" | "cli" | "main")) {
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

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
                sources.push(Source::new(&name, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(sources.len() > 50, "only {} files found", sources.len());
    sources
}

/// Tries a rule on the tree, and on files of which each breaks it or, when `good`, does not.
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
            ("storage/local/mod.rs", "use crate::{telemetry::{Metrics, Backend}, celery::{a, b}};"),
            ("worker/desk.rs", "fn f() { crate::storage::Key::parse(text); }"),
            ("broker/session.rs", "use crate::celery::request::TaskRequest;"),
            ("broker/session.rs", "use crate::celery::{self, message::Message};"),
            ("celery/body.rs", "use super::super::storage::Key;"),
            ("celery/mod.rs", "use super::storage::Key;"),
            ("celery/body/zlib.rs", "fn f(x: super::super::super::broker::Session) {}"),
            ("telemetry/mod.rs", "use crate as ours;"),
            ("extra/mod.rs", "fn f() {}"),
        ],
        &[
            ("cli/worker.rs", "use crate::{broker, storage};"),
            ("broker/session.rs", "use crate::celery::message::Message;"),
            ("broker/session.rs", "use crate::celery::message::{Message, Headers};"),
            ("celery/body/zlib.rs", "use super::super::message::Message;"),
            ("json/mod.rs", "// crate::storage\n/* crate::broker */ const A: &str = \"crate::celery\";"),
            ("json/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::storage::Key; }"),
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
            ("storage/retry.rs", "use backoff::backoff::Backoff;"),
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
            ("broker/mod.rs", "use std::env;\nfn f() { env\n::vars_os(); }"),
            ("storage/mod.rs", "let table: toml::Table = text.parse()?;"),
        ],
        &[("config/mod.rs", "std::env::var(\"A\");"), ("telemetry/a.rs", "env!(\"CARGO_PKG_VERSION\");")],
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
            ("worker/desk/tests.rs", "a.unwrap();"),
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
