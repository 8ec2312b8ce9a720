"""What `make dist` leaves behind, packed from the program that is built already."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "deploy" / "dist"
BINARY = Path(os.environ.get("FILESTORAGE_BIN", ROOT / "target" / "debug" / "filestorage"))
EPOCH = 1_700_000_000

pytestmark = [
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} does not exist; run: cargo build"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is missing; on Debian: apt-get install binutils"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packing asks git which files there are"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The built program without its symbols, a fifth of the size."""
    path = tmp_path_factory.mktemp("program") / "filestorage"
    subprocess.run(["strip", "-o", str(path), str(BINARY)], check=True)
    return path


def dist(output, *args, umask=0o022):
    return subprocess.run(
        ["bash", "-c", f"umask {umask:o}; exec {DIST} --no-sbom --output {output} \"$@\"", "dist", *map(str, args)],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}, cwd="/", capture_output=True, text=True, timeout=120, check=False,
    )


@pytest.fixture(scope="module")
def made(program, tmp_path_factory):
    output = tmp_path_factory.mktemp("dist")
    done = dist(output, "--binary", program)
    assert done.returncode == 0, done.stderr
    return output, done


def archive_in(folder):
    [archive] = folder.glob("filestorage-*.tar.gz")
    return archive


def test_the_checksums_are_those_of_what_lies_there(made):
    output, _ = made
    assert sorted(path.name for path in output.iterdir()) == sorted([archive_in(output).name, "SHA256SUMS"])
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=output, capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and checked.stdout.count(": OK") == 1, checked


def test_the_archive_holds_what_an_installation_needs(made, program, tmp_path):
    archive = archive_in(made[0])
    top = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar}
    # As an operator unpacks it.
    subprocess.run(["tar", "-C", tmp_path, "-xf", archive], check=True)
    for name in ["filestorage", "LICENSE", "README.md", "CHANGELOG.md", "docs/how-to/systemd.md", "filestorage.example.toml",
                 "schemas/event.json", "THIRD-PARTY-LICENSES.txt", "systemd/filestorage.service", "systemd/filestorage@.service", "systemd/broker-url"]:
        assert f"{top}/{name}" in members
    assert not [name for name in members if name.startswith(f"{top}/docs/") and not members[name].isdir() and not name.endswith(".md")]
    for member in members.values():
        assert (member.uid, member.gid, member.mtime) == (0, 0, EPOCH), member
        private = member.name == f"{top}/systemd/broker-url"
        executable = member.isdir() or member.name == f"{top}/filestorage"
        assert member.mode == (0o600 if private else 0o755 if executable else 0o644), member
    licences = (tmp_path / top / "THIRD-PARTY-LICENSES.txt").read_text()
    for name in ["lapin", "tokio", "aws-lc-sys", "zstd-sys", "tikv-jemalloc-sys"]:
        assert re.search(rf"\b{name} \d", licences), name
    assert str(ROOT) not in licences
    assert (tmp_path / top / "filestorage").read_bytes() == program.read_bytes()
    said = subprocess.run([tmp_path / top / "filestorage", "--version"], capture_output=True, text=True, check=True).stdout
    assert top.startswith(said.strip().replace(" ", "-"))


def test_packed_twice_it_is_the_same_bytes(made, program, tmp_path):
    again = dist(tmp_path, "--binary", program, umask=0o077)
    assert again.returncode == 0, again.stderr
    assert archive_in(tmp_path).read_bytes() == archive_in(made[0]).read_bytes()


def test_the_oldest_glibc_is_said(made):
    assert re.search(r"needs glibc 2\.\d+ or newer", made[1].stderr)


def test_what_is_not_this_program_is_refused(tmp_path):
    other = tmp_path / "filestorage"
    other.write_text("#!/bin/sh\necho filestorage 99.0.0\n")
    other.chmod(0o755)
    done = dist(tmp_path / "out", "--binary", other)
    assert done.returncode == 65 and "is not filestorage" in done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler is missing")
def test_a_library_that_not_every_machine_has_is_refused(tmp_path):
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    (tmp_path / "odd.c").write_text("int odd(void) { return 0; }\n")
    (tmp_path / "main.c").write_text(
        f'#include <stdio.h>\nint odd(void);\nint main(void) {{ puts("filestorage {version}"); return odd(); }}\n'
    )
    library, program = tmp_path / "libodd.so.1", tmp_path / "filestorage"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libodd.so.1", "-o", library, tmp_path / "odd.c"], check=True)
    subprocess.run(["cc", "-o", program, tmp_path / "main.c", library, f"-Wl,-rpath,{tmp_path}"], check=True)
    done = dist(tmp_path / "out", "--binary", program)
    assert done.returncode == 65 and "libodd.so.1" in done.stderr
