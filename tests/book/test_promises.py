"""Promises name the tests that hold them, and those tests are there."""

import re

from pages import DOCS, ROOT

GUARANTEES = DOCS / "guarantees.md"
PROMISES = DOCS / "internals" / "promises.md"
FILESTORAGE = DOCS / "reference" / "filestorage.md"
NAMED = re.compile(r"`(\w+)::(\w+)`")


def sources(prefix):
    """The files of the place that a prefix names: below tests/ or src/, by folder or by file."""
    for top in (ROOT / "tests", ROOT / "src"):
        folder = top / prefix
        yield from (path for path in folder.rglob("*") if path.suffix in (".rs", ".py"))
        yield from (path for path in [folder.with_suffix(".rs")] if path.exists())


def missing(text, known=None):
    """The tests that a text names and that are not there."""
    known = {} if known is None else known
    faults = []
    for prefix, name in NAMED.findall(text):
        if prefix not in known:
            known[prefix] = set()
            for path in sources(prefix):
                # A function is a test when an attribute makes it one, or by its name in Python.
                text_of_file = path.read_text()
                known[prefix] |= set(re.findall(r"^ *(?:async )?def (test_\w+)", text_of_file, re.M))
                known[prefix] |= set(re.findall(r"#\[(?:tokio::)?test\b[^\n]*\n(?:\s*#\[[^\n]*\n)*\s*(?:async )?fn (\w+)", text_of_file))
        if name not in known[prefix]:
            faults.append(f"{prefix}::{name}")
    return faults


def sections(text):
    """(title, text) of every `###` section."""
    return [(part.partition("\n")[0], part) for part in re.split(r"^### ", text.replace("\n## ", "\n### ## "), flags=re.M)[1:]]


def without_test(text):
    """The sections of the guarantees that name no test."""
    return [title for title, part in sections(text) if not title.startswith("## ") and not NAMED.search(part.partition("Held by: ")[2])]


def rows_without_test(text):
    """The rows of the promises' tables that name no test."""
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise |", "| documentation |"))]
    return [row for row in rows if not NAMED.search(row.rsplit("|", 2)[1])]


def test_every_guarantee_names_a_test_that_is_there():
    text = GUARANTEES.read_text()
    assert len(sections(text)) > 20
    assert without_test(text) == []
    assert missing(text.replace("`e2e::test_x`", "")) == []


def test_every_promise_names_a_test_that_is_there():
    text = PROMISES.read_text()
    assert len(NAMED.findall(text)) > 100
    assert rows_without_test(text) == []
    assert missing(text.replace("`e2e::test_x`", "")) == []


def test_every_promise_of_the_python_class_names_a_test():
    text = FILESTORAGE.read_text()
    assert len(NAMED.findall(text)) > 100
    assert rows_without_test(text) == []
    assert missing(text) == []


def test_what_the_security_page_names_is_there():
    page = DOCS / "security.md"
    names = re.findall(r"`(test_\w+)`", page.read_text())
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert names and [name for name in names if f"def {name}(" not in text] == []


def test_a_planted_missing_test_is_found():
    assert missing("`e2e::test_no_such_thing` `nowhere::test_x` `worker::every_part_tells`") == ["e2e::test_no_such_thing", "nowhere::test_x"]


def test_a_planted_promise_without_a_test_is_found():
    assert without_test("## A\n\n### One\n\nHeld by: `e2e::test_x`\n\n### Two\n\nHeld by: hope\n\n## B\n\ntext\n") == ["Two"]
    assert rows_without_test("| promise | tests |\n|---|---|\n| a | `e2e::test_x` |\n| `e2e::test_x` | none |\n") == ["| `e2e::test_x` | none |"]
