//! Tests of the dependencies: one TLS stack, allowed licences, no exception but the recorded one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

/// One package of the tree.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: String,
}

/// Returns the packages that are compiled into the program or run while it is built.
///
/// `cargo tree` and not `cargo metadata`: the latter also lists packages that no enabled feature asks for.
fn tree() -> BTreeSet<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}\t{l}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    parse(&String::from_utf8(output.stdout).unwrap())
}

fn parse(tree: &str) -> BTreeSet<Package> {
    let package = |line: &str| {
        let (package, license) = line.trim_end_matches(" (*)").split_once('\t')?;
        let mut words = package.split(' ');
        let (name, version) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Package { name, version, license: license.to_owned() })
    };
    tree.lines().filter(|line| !line.is_empty()).map(|line| package(line).unwrap_or_else(|| panic!("{line}"))).collect()
}

/// Returns the rules of `deny.toml`, as `cargo deny` reads them.
fn rules() -> toml::Table {
    toml::from_str(include_str!("../../deny.toml")).unwrap()
}

fn texts(rules: &toml::Table, section: &str, name: &str) -> Vec<String> {
    let items = rules[section][name].as_array().unwrap();
    let text = |item: &toml::Value| item.as_str().or_else(|| item.get("name")?.as_str()).unwrap().to_owned();
    items.iter().map(text).collect()
}

/// Tells whether an SPDX expression can be met with the allowed licences; `/` is the old form of `OR`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let Some(word) = words.next() else { return false };
    if word == "(" {
        let met = any(words, allowed);
        return words.next() == Some(")") && met;
    }
    let mut license = word.to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        license = format!("{license} WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&license)
}

#[test]
fn every_licence_is_allowed() {
    let allowed = texts(&rules(), "licenses", "allow");
    let others: Vec<_> = tree().into_iter().filter(|package| !is_allowed(&package.license, &allowed)).collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn there_is_one_tls_stack() {
    let tree = tree();
    let banned = texts(&rules(), "bans", "deny");
    for name in ["openssl", "openssl-sys", "native-tls", "ring"] {
        assert!(banned.iter().any(|banned| banned == name), "{name} is not banned");
    }
    let found: Vec<_> = tree.iter().filter(|package| banned.contains(&package.name)).collect();
    assert!(found.is_empty(), "{found:?}");
    for name in ["rustls", "aws-lc-rs"] {
        let versions: Vec<_> = tree.iter().filter(|package| package.name == name).collect();
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

#[test]
fn backoff_is_the_only_exception() {
    assert_eq!(texts(&rules(), "advisories", "ignore"), ["RUSTSEC-2025-0012"]);
    for (section, exceptions) in [("licenses", "exceptions"), ("licenses", "clarify"), ("bans", "skip")] {
        assert!(rules()[section].get(exceptions).is_none(), "{section}.{exceptions}");
    }
}

#[test]
fn a_planted_package_is_found() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "ISC AND (MIT OR GPL-2.0)",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        "(GPL-2.0 OR MIT) AND ISC",
    ] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "", "Apache-2.0", "ISC AND (GPL-2.0 OR LGPL-2.1)", "(MIT", "MIT MIT"] {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
    let tree = parse("a v1.0.0 (proc-macro)\tMIT\nopenssl v0.10.1\tApache-2.0 (*)\n");
    assert!(tree.iter().any(|package| package.name == "openssl" && package.license == "Apache-2.0"), "{tree:?}");
}
