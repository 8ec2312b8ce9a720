//! Finds which file uses which, by the paths in the code, resolved through the re-exports of each `mod.rs`.

use std::collections::{BTreeMap, BTreeSet};

use crate::Source;

/// The module of a file, as names below the crate's root: none for `lib.rs`, `["a", "b"]` for `a/b.rs` and `a/b/mod.rs`.
pub(crate) fn module(path: &str) -> Vec<&str> {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    if matches!(path, "lib" | "main" | "mod") { Vec::new() } else { path.split('/').collect() }
}

/// Returns all paths in the code that begin with `crate::`, `super::` or `self::`, with groups expanded, as names below the root.
pub(crate) fn absolute_paths(source: &Source) -> Vec<Vec<String>> {
    let code: String = source.code.split_whitespace().collect::<Vec<_>>().join(" ");
    let here = module(&source.path);
    let mut found = Vec::new();
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let inside = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if inside {
                continue;
            }
            for path in trees(&code[at..]) {
                found.extend(absolute(&here, &path));
            }
        }
    }
    found
}

/// Expands the tree of paths that begins here.
fn trees(rest: &str) -> Vec<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = rest.trim_start();
    loop {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if end == 0 {
            break;
        }
        names.push(rest[..end].to_owned());
        let Some(next) = rest[end..].strip_prefix("::") else { return vec![names] };
        rest = next;
    }
    let Some(group) = rest.strip_prefix('{') else { return vec![names] };
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    let mut branch = |text: &str| {
        for tail in trees(text) {
            found.push(names.iter().cloned().chain(tail.into_iter().filter(|name| name != "self")).collect());
        }
    };
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                branch(&group[begin..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branch(&group[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    found
}

fn absolute(here: &[&str], path: &[String]) -> Option<Vec<String>> {
    let climbs = path.iter().take_while(|name| *name == "super").count();
    let base = match path.first()?.as_str() {
        "crate" => &here[..0],
        "self" => here,
        // More of them than there are modules is a test's own way up.
        _ => here.get(..here.len().checked_sub(climbs)?)?,
    };
    let rest = path.iter().skip(climbs.max(1));
    Some(base.iter().map(|name| (*name).to_owned()).chain(rest.cloned()).collect())
}

/// The files of the tree by their modules, and the re-exports of each file.
pub(crate) struct Tree<'s> {
    files: BTreeMap<Vec<&'s str>, &'s Source>,
    passed_on: BTreeMap<Vec<&'s str>, BTreeMap<String, Vec<String>>>,
}

impl<'s> Tree<'s> {
    pub(crate) fn new(sources: &'s [Source]) -> Self {
        let sources = sources.iter().filter(|source| !source.is_test());
        let files: BTreeMap<_, _> = sources.map(|source| (module(&source.path), source)).collect();
        let passed_on = files.iter().map(|(module, source)| (module.clone(), passed_on(module, source))).collect();
        Self { files, passed_on }
    }

    /// Finds the file that defines the item of a path.
    fn resolve(&self, path: &[String]) -> Option<&'s str> {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let length = (0..=names.len()).rev().find(|length| self.files.contains_key(&names[..*length]))?;
        let (module, rest) = names.split_at(length);
        let next = rest.first().and_then(|name| self.passed_on.get(module)?.get(*name));
        match next {
            Some(next) if next != path => self.resolve(next),
            _ => self.files.get(module).map(|source| source.path.as_str()),
        }
    }

    /// Returns the circles: files of which each uses the next, and the last uses the first. Parents and children do not count.
    pub(crate) fn circles(&self) -> Vec<BTreeSet<&'s str>> {
        let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for source in self.files.values() {
            let from = module(&source.path);
            for path in absolute_paths(source) {
                let Some(to) = self.resolve(&path) else { continue };
                let target = module(to);
                if !from.starts_with(&target) && !target.starts_with(&from) {
                    uses.entry(source.path.as_str()).or_default().insert(to);
                }
            }
        }
        let reach = |from: &'s str| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
            while let Some(next) = open.pop() {
                for to in uses.get(next).into_iter().flatten() {
                    if seen.insert(*to) {
                        open.push(to);
                    }
                }
            }
            seen
        };
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            self.files.values().map(|source| (source.path.as_str(), reach(&source.path))).collect();
        let mut circles: Vec<BTreeSet<&str>> = Vec::new();
        for (from, to) in &reached {
            if to.contains(from) && !circles.iter().any(|circle| circle.contains(from)) {
                circles.push(to.iter().filter(|other| reached[**other].contains(from)).copied().collect());
            }
        }
        circles
    }
}

/// Returns the names that a file re-exports, with their paths below the root.
fn passed_on(module: &[&str], source: &Source) -> BTreeMap<String, Vec<String>> {
    let code: String = source.code.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = BTreeMap::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].trim_end();
        let is_public = before.ends_with("pub") || (before.ends_with(')') && before.contains("pub("));
        if !is_public {
            continue;
        }
        for path in trees(&code[at + 4..]) {
            let absolute = match path.first().map(String::as_str) {
                Some("crate" | "super" | "self") => absolute(module, &path),
                _ => Some(module.iter().map(|name| (*name).to_owned()).chain(path).collect()),
            };
            if let Some(absolute) = absolute
                && let Some(name) = absolute.last().cloned()
            {
                found.insert(name, absolute);
            }
        }
    }
    found
}
