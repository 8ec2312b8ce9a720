"""What `make demo` and `make test` look for first: all of it at once, installed where that is permitted, else named."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEED = ROOT / "deploy" / "need"
VENV = ROOT / "deploy" / "venv"
# What any system has.
PLAIN = "bash basename cat chmod comm cut dirname env find grep head ln mktemp rm sed sort tail tee tr true uname".split()
# Installs what it is asked for, as far as these tests ask; it runs nothing as root.
SUDO = """\
#!/bin/sh
echo "$*" >>{calls}
case "$*" in
*apt-get*install*openssl*)
    [ ! -e {broken} ] || {{ echo "E: no such package"; exit 100; }}
    echo "Setting up openssl"
    ln -s {python} {bin}/python3; ln -s /bin/true {bin}/openssl ;;
esac
"""


class Machine:
    """A PATH of its own: plain tools, and what a test puts there. Its user is not root."""

    def __init__(self, folder):
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls = folder / "calls"
        self.broken = folder / "broken"
        for name in PLAIN:
            (self.bin / name).symlink_to(shutil.which(name))
        self.put("id", "echo 1000")

    def put(self, name, text="exit 0"):
        path = self.bin / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def allow_sudo(self):
        python = os.path.realpath(sys.executable)
        self.put("sudo", SUDO.format(calls=self.calls, bin=self.bin, python=python, broken=self.broken))

    def need(self, *needs):
        environment = {"PATH": str(self.bin), "HOME": "/nowhere"}
        return subprocess.run([NEED, *needs], env=environment, capture_output=True, text=True, timeout=60, check=False)

    def installations(self):
        return [call for call in self.calls.read_text().splitlines() if "install -y" in call] if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_it_is_silent_where_all_is_there():
    done = subprocess.run([NEED, "rust", "lints", "python", "processes", "openssl"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_missing_packages_are_installed_by_one_quiet_call(machine):
    machine.put("apt-get")
    machine.allow_sudo()
    done = machine.need("python", "openssl")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == "need: installing with apt-get: python3 python3-venv openssl\n"
    [call] = machine.installations()
    assert call.endswith("--no-install-recommends python3 python3-venv openssl")


def test_a_failed_installation_is_shown_with_its_command(machine):
    machine.put("apt-get")
    machine.allow_sudo()
    machine.broken.touch()
    done = machine.need("python", "openssl")
    assert done.returncode == 69 and "E: no such package" in done.stderr
    assert "need: run: sudo apt-get install -y python3 python3-venv openssl\n" in done.stderr


def test_what_was_installed_and_will_not_do_is_named(machine):
    machine.put("apt-get")
    machine.put("sudo", "#!/bin/sh\nexit 0")
    done = machine.need("python")
    assert done.returncode == 69 and "Python 3.10 or newer with its module venv is missing" in done.stderr


def test_nothing_is_installed_when_something_else_is_missing(machine):
    """Rust comes from no package manager; both are named at once."""
    machine.put("apt-get")
    machine.allow_sudo()
    done = machine.need("rust", "python", "openssl")
    assert done.returncode == 69 and machine.installations() == []
    assert "Rust is missing; run: curl" in done.stderr
    assert "need: run: sudo apt-get install -y gcc libc6-dev make python3 python3-venv openssl\n" in done.stderr


def test_an_old_rust_is_named_with_its_version(machine):
    for name in ("cc", "make", "cargo"):
        machine.put(name)
    machine.put("rustc", "echo 'rustc 1.63.0 (897e37553 2022-08-02)'")
    done = machine.need("rust")
    wanted = re.search(r'^rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
    assert done.returncode == 69 and f"Rust {wanted} or newer is needed, this is rustc 1.63.0" in done.stderr


@pytest.mark.parametrize(
    "manager, command",
    [
        ("apt-get", "sudo apt-get install -y python3 python3-venv openssl procps gcc libc6-dev"),
        ("dnf", "sudo dnf install -y python3 openssl procps-ng gcc glibc-devel"),
        ("apk", "sudo apk add python3 openssl procps build-base"),
        ("brew", "brew install python openssl"),
    ],
)
def test_without_permission_there_is_one_command(machine, manager, command):
    if manager == "brew":
        for name in ("ps", "cc"):
            machine.put(name)
    machine.put(manager)
    for name in ("cargo", "make"):
        machine.put(name)
    machine.put("rustc", "echo rustc 9.0.0")
    done = machine.need("python", "openssl", "processes", "rust")
    assert done.returncode == 69
    assert f"need: run: {command}\n" in done.stderr, done.stderr


def test_packages_that_cannot_be_had_leave_no_environment(tmp_path):
    environment = {**os.environ, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_NO_INDEX": "0"}
    command = [VENV, tmp_path / "venv", "filestorage-is-not-there==1.0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (69, "")
    assert "filestorage-is-not-there" in done.stderr and "PIP_INDEX_URL names another" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_machine_without_the_name_localhost_is_told_of(machine):
    """A bare Debian has no /etc/hosts and gets one from a package; where there is one, it is left alone."""
    machine.put("apt-get")
    machine.put("getent", "exit 2")
    done = machine.need("localhost")
    assert done.returncode == 69
    written = Path("/etc/hosts").exists()
    remedy = "echo 127.0.0.1 localhost | sudo tee -a /etc/hosts" if written else "sudo apt-get install -y netbase"
    assert f"run: {remedy}\n" in done.stderr, done.stderr
