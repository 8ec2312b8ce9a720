"""Every link leads somewhere, in the repository and in the built site, and the site is built without a warning."""

import re
import shutil
import subprocess
import sys

import pytest

from pages import DOCS, ROOT, TOP, anchors, dead_html_links, dead_links, pages, read_html

BUILD = [sys.executable, str(DOCS / "build")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    output = tmp_path_factory.mktemp("book") / "site"
    done = subprocess.run([*BUILD, "--output", str(output)], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == str(output / "index.html")
    return output


def test_every_link_of_every_page_leads_somewhere():
    assert [fault for page in pages() for fault in dead_links(page)] == []


def test_every_link_of_the_site_leads_somewhere(site):
    assert dead_html_links(site) == []


def test_the_headings_have_the_anchors_that_mdbook_gives_them(site):
    for page in DOCS.rglob("*.md"):
        if page.name != "SUMMARY.md":
            built = read_html(site / page.relative_to(DOCS).with_suffix(".html")).ids
            assert set(anchors(page.read_text())) <= built, page


def apart(named, there):
    """What is named and not there, or there and not named."""
    return sorted(set(named) ^ set(there))


def is_long(text):
    return len(text.encode()) > 10 * 1024


def is_whole(decision):
    return re.findall(r"^## (.*)$", decision, re.M) == ["Context", "Decision", "Consequence"]


def names_a_kernel_release(text):
    return re.search(r"Linux \d+\.\d", text) is not None


def test_every_page_is_a_chapter_and_every_chapter_a_page():
    named = re.findall(r"\]\(([^)]+)\)", (DOCS / "SUMMARY.md").read_text())
    there = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.name != "SUMMARY.md"]
    assert apart(named, there) == [] and len(named) == len(set(named))


def test_the_readme_is_short():
    assert not is_long((ROOT / "README.md").read_text())


def test_every_decision_has_three_parts_and_is_listed():
    listed = re.findall(r"\]\(decisions/([^)]+)\)", (DOCS / "internals" / "decisions.md").read_text())
    there = sorted((DOCS / "internals" / "decisions").glob("*.md"))
    assert listed == [path.name for path in there] and there
    assert [path.name for path in there if not is_whole(path.read_text())] == []


def test_no_page_names_a_kernel_release():
    assert [page for page in pages() if names_a_kernel_release(page.read_text())] == []


# --- planted faults --------------------------------------------------------------------------------------------------


def test_small_planted_faults_are_found():
    assert apart(["a.md", "b.md"], ["b.md", "c.md"]) == ["a.md", "c.md"]
    assert is_long("é" * 5121) and not is_long("é" * 5120)
    assert not is_whole("# A\n\n## Context\n\n## Consequence\n\n## Decision\n")
    assert names_a_kernel_release("2 cores, Linux 6.18.44-x, ext4") and not names_a_kernel_release("2 cores, Linux 6, ext4")


@pytest.fixture
def tree(tmp_path):
    """A copy of the pages, to be spoilt; what they link to beside them is left out."""
    for name in TOP:
        (tmp_path / name).write_text("# Title\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# One title\n\n## Two `words`, and more\n\n[up](../README.md#title)\n")
    assert [fault for page in pages(tmp_path) for fault in dead_links(page, tmp_path)] == []
    return tmp_path


@pytest.mark.parametrize(
    "link, said",
    [
        ("[x](missing.md)", "no such file"),
        ("[x](../../outside.md)", "no such file"),
        ("[x](#three-words)", "no such heading"),
        ("[x](../README.md#two-words-and-more)", "no such heading"),
        ("a\n\n[x]: missing.md", "no such file"),
    ],
)
def test_a_planted_dead_link_is_found(tree, link, said):
    page = tree / "docs" / "page.md"
    page.write_text(page.read_text() + f"\n[fine](#two-words-and-more) {link}\n")
    (fault,) = dead_links(page, tree)
    assert said in fault and fault.startswith("docs/page.md:")


def test_what_looks_like_a_link_in_code_is_none(tree):
    page = tree / "docs" / "page.md"
    page.write_text("# Title\n\n`[x](missing.md)`\n\n```text\n[x](missing.md)\n```\n")
    assert dead_links(page, tree) == []


def test_a_planted_dead_link_of_the_site_is_found(site, tmp_path):
    spoilt = tmp_path / "site"
    shutil.copytree(site, spoilt)
    page = spoilt / "tutorial.html"
    page.write_text(page.read_text() + '<a href="glossary.html#no-such-word">x</a><a href="nowhere.html">y</a>')
    assert dead_html_links(spoilt) == [
        "tutorial.html: glossary.html#no-such-word: no such heading",
        "tutorial.html: nowhere.html: no such file",
    ]


@pytest.fixture
def small(tmp_path):
    """The smallest book that builds, with the project's own script."""
    for name in TOP:
        (tmp_path / name).write_text(f"# {name}\n")
    (tmp_path / "docs").mkdir()
    for name in ("build", "book.toml"):
        shutil.copy(DOCS / name, tmp_path / "docs")
    (tmp_path / "docs" / "page.md").write_text("# Title\n\n[up](../README.md) [file](book.toml)\n")
    (tmp_path / "docs" / "SUMMARY.md").write_text("# Summary\n\n- [Title](page.md)\n")
    return tmp_path


def build(small):
    command = [sys.executable, str(small / "docs" / "build"), "--output", str(small / "site")]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_the_smallest_book_is_built(small):
    assert build(small).returncode == 0
    assert dead_html_links(small / "site") == []
    assert (small / "site" / "source" / "docs" / "book.toml.txt").exists()


def test_a_planted_chapter_that_is_missing_fails_the_build(small):
    (small / "docs" / "SUMMARY.md").write_text("# Summary\n\n- [Title](page.md)\n- [Other](other.md)\n")
    done = build(small)
    assert done.returncode != 0 and "other.md" in done.stderr


def test_a_planted_link_to_a_missing_file_fails_the_build(small):
    (small / "docs" / "page.md").write_text("# Title\n\n[file](../Makefile)\n")
    done = build(small)
    assert done.returncode != 0 and "Makefile" in done.stderr
