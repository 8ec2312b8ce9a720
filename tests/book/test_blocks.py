"""The shell and Python blocks of the tutorial and the how-to pages do what the pages say."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import BINARY
from pages import DOCS, ROOT, split

# What is shown and not typed.
SHOWN = {"text", "toml", "ini", "json", "yaml"}
PAGES = [DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]


def complaints(page):
    """Blocks that are neither run, nor shown only, nor said why they are not run."""
    faults = []
    for block in split(page.read_text())[1]:
        if block.info in ("bash", "python"):
            if block.not_run:
                faults.append(f"{page.name}:{block.line}: it is run, so a reason why not says something wrong")
        elif block.info not in SHOWN and not block.not_run:
            faults.append(f"{page.name}:{block.line}: neither run nor `<!-- not run: REASON -->` above it")
    return faults


def script(page):
    """All blocks of a page that are run, as one script: what one block exports, the next one has."""
    lines = ["set -euo pipefail"]
    for block in split(page.read_text())[1]:
        if block.info in ("bash", "python"):
            lines.append(f"echo '### {page.name}:{block.line}' >&2")
        if block.info == "bash":
            lines.append(block.text)
        elif block.info == "python":
            end = f"END_OF_BLOCK_{block.line}"
            lines.append(f"python - <<'{end}'\n{block.text}{end}")
    return "\n".join(lines) + "\n"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def run_page(page, folder, env):
    """Runs a page in a folder that looks like the repository's, and ends what it left running."""
    tools = folder / "deploy"
    tools.mkdir()
    for tool in (ROOT / "deploy").iterdir():
        if tool.is_dir():
            # `cd "$(dirname "$0")/.."` of a script in a linked folder would lead here instead of to the repository.
            for inner in (path for path in tool.iterdir() if path.is_file()):
                wrapper(tools / tool.name / inner.name, inner)
        else:
            wrapper(tools / tool.name, tool)
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), env["PATH"]])
    (folder / "bin").mkdir()
    (folder / "bin" / "filestorage").symlink_to(BINARY.resolve())
    process = subprocess.Popen(
        ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
        env={**env, "PATH": path, "METRICS_PORT": str(free_port()), "HOME": str(folder)}, start_new_session=True,
    )
    try:
        said, _ = process.communicate(script(page), timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        said += "\nit did not end within 120 s"
        return -1, said
    finally:
        try:
            # A worker that the page started and a failure kept it from stopping.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return process.returncode, said


def wrapper(path, target):
    path.parent.mkdir(exist_ok=True)
    if os.access(target, os.X_OK):
        path.write_text(f'#!/bin/sh\nexec "{target}" "$@"\n')
        path.chmod(0o755)
    else:
        path.symlink_to(target)


def is_run(page):
    return any(block.info in ("bash", "python") for block in split(page.read_text())[1])


def telling(said):
    """What a failing page said, from the block it failed in on."""
    return said[max(said.rfind("### "), 0):]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page):
    assert complaints(page) == []


# The tutorial stops the broker, so it is the last.
@pytest.mark.parametrize("page", [page for page in reversed(PAGES) if is_run(page)], ids=lambda page: page.stem)
def test_the_blocks_do_what_the_page_says(page, servers, tmp_path):
    status, said = run_page(page, tmp_path, servers.env())
    assert status == 0, telling(said)


def test_most_pages_are_run():
    assert {page.stem for page in PAGES if is_run(page)} >= {
        "tutorial", "gcs", "s3", "shell", "large-values", "several-workers", "outage", "upgrade",
    }


# --- planted faults --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "```bash\ntrue\n```\n\n```bash\nfalse\n```\n\n```bash\ntrue\n```\n",
        "```python\nassert 1 == 2\n```\n",
        "```bash\nfilestorage retrieve missing\n```\n",
        "```bash\ntrue | false | true\n```\n",
    ],
)
def test_a_planted_failing_block_is_found(text, servers, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{text}")
    folder = tmp_path / "folder"
    folder.mkdir()
    status, said = run_page(page, folder, servers.env())
    assert status != 0 and re.match(r"### page\.md:\d+", telling(said))


def test_what_a_failing_page_left_running_is_ended(servers, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nsleep 300 > /dev/null 2>&1 &\necho $! > pid\nfalse\n```\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert run_page(page, folder, servers.env())[0] != 0
    stat = Path(f"/proc/{(folder / 'pid').read_text().strip()}/stat")
    deadline = time.monotonic() + 10
    # Whoever adopts it may not have waited for it yet.
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("block", ["```\nls\n```", "```sh\nls\n```", "```console\nls\n```", "<!-- not run: -->\n```console\nls\n```"])
def test_a_planted_block_without_a_reason_is_found(block, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{block}\n")
    assert len(complaints(page)) == 1
    page.write_text(f"# Title\n\n<!-- not run: needs a cluster -->\n```console\nls\n```\n\n```text\nls\n```\n")
    assert complaints(page) == []


def test_a_reason_above_a_block_that_is_run_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a cluster -->\n```bash\nls\n```\n")
    assert len(complaints(page)) == 1
