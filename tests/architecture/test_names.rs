//! The rule that the name of a test is short enough to be read at a glance.

use super::files_below;

/// The length that the name of a test may not reach, in characters.
const LIMIT: usize = 60;

/// The rooms whose unit tests are not checked.
const UNCHECKED: &[&str] = &["src/broker/", "src/worker/"];

/// Finds the tests of one file, in Rust or Python, whose names are too long.
fn long_names(path: &str, text: &str) -> Vec<String> {
    if UNCHECKED.iter().any(|room| path.starts_with(room)) {
        return Vec::new();
    }
    let names = if path.ends_with(".py") { python_tests(text) } else { rust_tests(text) };
    let long = names.into_iter().filter(|name| name.chars().count() >= LIMIT);
    long.map(|name| format!("{path}: {name} has {} characters", name.chars().count())).collect()
}

fn python_tests(text: &str) -> Vec<&str> {
    let definitions = text.lines().map(str::trim_start).map(|line| line.strip_prefix("async ").unwrap_or(line));
    definitions
        .filter_map(|line| line.strip_prefix("def "))
        .map(identifier)
        .filter(|it| it.starts_with("test"))
        .collect()
}

fn rust_tests(text: &str) -> Vec<&str> {
    let (mut tests, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim_start) {
        if let Some(attribute) = line.strip_prefix("#[") {
            let path = attribute.split(['(', ']']).next().unwrap_or_default();
            is_test |= path.rsplit("::").next() == Some("test");
        } else if let Some((_, name)) = line.split_once("fn ")
            && std::mem::take(&mut is_test)
        {
            tests.push(identifier(name));
        }
    }
    tests
}

/// Returns the identifier at the begin of a text.
fn identifier(text: &str) -> &str {
    let end = text.find(|character: char| !character.is_alphanumeric() && character != '_');
    &text[..end.unwrap_or(text.len())]
}

#[test]
fn names_of_tests_have_fewer_than_60_characters() {
    let (long, fine) = ("x".repeat(LIMIT), "x".repeat(LIMIT - 1));
    let python = |name: &str| format!("def test_{}(site):\n    pass\n", &name[5..]);
    for (path, text) in [
        ("tests/e2e/test_a.py", python(&long)),
        ("tests/e2e/test_a.py", format!("class TestA:\n    async {}", python(&long))),
        ("src/json/mod.rs", format!("#[test]\nfn {long}() {{}}")),
        (
            "tests/cli/main.rs",
            format!("    #[tokio::test(start_paused = true)]\n    #[ignore]\n    async fn {long}() {{}}"),
        ),
    ] {
        assert_eq!(long_names(path, &text).len(), 1, "{path}: {text}");
    }
    for (path, text) in [
        ("tests/e2e/test_a.py", python(&fine)),
        ("tests/e2e/harness.py", format!("def {long}(): pass")),
        ("src/json/mod.rs", format!("#[test]\nfn {fine}() {{}}\n\nfn {long}() {{}}")),
        ("src/worker/mod.rs", format!("#[test]\nfn {long}() {{}}")),
    ] {
        assert_eq!(long_names(path, &text), Vec::<String>::new(), "{path}: {text}");
    }
    let mut tests = 0;
    let mut complaints = Vec::new();
    for folder in ["src", "tests"] {
        for (path, text) in files_below(folder, &["rs", "py"]) {
            tests += if path.ends_with(".py") { python_tests(&text) } else { rust_tests(&text) }.len();
            complaints.extend(long_names(&path, &text));
        }
    }
    assert!(tests > 500, "only {tests} tests found");
    assert!(complaints.is_empty(), "{complaints:#?}");
}
