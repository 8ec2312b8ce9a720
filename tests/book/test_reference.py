"""The pages that the program writes are those that it writes now, and the README names what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pages import DOCS, ROOT

BINARY = Path(os.environ.get("FILESTORAGE_BIN", ROOT / "target" / "debug" / "filestorage"))
GENERATE = DOCS / "generate"
PAGES = ["settings", "command-line", "tasks", "events", "metrics"]


def drift(folder, committed=DOCS / "reference"):
    """The pages that differ from those in a folder."""
    return [name for name in PAGES if (committed / f"{name}.md").read_text() != (folder / f"{name}.md").read_text()]


@pytest.fixture(scope="module")
def written(tmp_path_factory, servers):
    folder = tmp_path_factory.mktemp("reference")
    done = subprocess.run(
        [sys.executable, str(GENERATE), "--binary", str(BINARY), "--output", str(folder)],
        env=servers.generator_env(), capture_output=True, text=True, timeout=180, check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_is_what_the_program_writes(written):
    assert drift(written) == [], "run: docs/generate"


def test_a_drifted_page_is_found(written, tmp_path):
    for name in PAGES:
        (tmp_path / f"{name}.md").write_text((written / f"{name}.md").read_text())
    page = tmp_path / "settings.md"
    page.write_text(page.read_text().replace("max_retries", "max_tries"))
    assert drift(written, tmp_path) == ["settings"]


def test_the_readme_names_every_task_with_its_signature(written):
    signatures = re.findall(r"^(filestorage\.\w+)\((.*)\)$", (written / "tasks.md").read_text(), re.M)
    assert len(signatures) > 5
    readme = (ROOT / "README.md").read_text()
    for task, arguments in signatures:
        shown = f" `{arguments}` " if arguments else " "
        assert f"| `{task}` |{shown}|" in readme, (task, arguments)


def test_every_exit_code_of_the_program_is_listed():
    code = (ROOT / "src" / "wiring" / "failure.rs").read_text()
    codes = re.findall(r"^    \w+ = (\d+),$", code, re.M)
    listed = re.findall(r"^\| (\d+) \|", (DOCS / "reference" / "exit-codes.md").read_text(), re.M)
    assert codes == listed and codes


def test_every_exception_of_the_contract_is_listed():
    errors = (DOCS / "reference" / "errors.md").read_text()
    code = "".join(path.read_text().partition("#[cfg(test)]")[0] for path in (ROOT / "src").rglob("*.rs") if "test" not in path.name)
    names = {name for _, name in re.findall(r'"(builtins|[a-z]+\.exceptions)", "(\w+)"', code)}
    assert len(names) > 8
    missing = sorted(name for name in names if f"`{name}`" not in errors)
    assert missing == [], "docs/reference/errors.md names every exception that an answer may have"
