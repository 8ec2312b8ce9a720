"""A crash leaves no core dump, which would hold keys, passwords and values."""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness import BINARY, wait_until

# The parent asks for cores of any size, as far as it may.
WRAPPER = ("bash", "-c", 'ulimit -c unlimited 2>/dev/null || ulimit -Sc hard; exec "$@"', "bash")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def core_limit(pid):
    """The soft and hard limit of core files, as texts."""
    lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    return next(line.split()[4:6] for line in lines if line.startswith("Max core file size"))


def dies(pid, number):
    """Kills a child with a signal that makes cores; tells whether it left one, wherever the system puts them."""

    def ended():
        # The first SIGSEGV from outside ends in the handler that looks for stack overflows; the next one kills.
        os.kill(pid, number)
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)

    end = wait_until(ended, what="its end", step=0.1)
    assert end.si_status == number, end
    assert end.si_code in (os.CLD_DUMPED, os.CLD_KILLED)
    return end.si_code == os.CLD_DUMPED


@pytest.fixture
def dumped(tmp_path):
    """What another program leaves here that dies so: whether there is a core at all."""
    folder = tmp_path / "other"
    folder.mkdir()
    with subprocess.Popen([*WRAPPER, "sleep", "60"], cwd=folder) as other:
        wait_until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n", what="the other program")
        left = dies(other.pid, signal.SIGSEGV)
    print(f"another program leaves {'a' if left else 'no'} core here: {[path.name for path in folder.iterdir()]}")
    return left


def lift(pid):
    """Gives a process the right to large cores again, as an administrator can; tells whether this was allowed here."""
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, UNLIMITED)
    except PermissionError as error:
        print(f"the limit is left at 0: {error}")
        return False
    return core_limit(pid) == ["unlimited", "unlimited"]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=["SIGSEGV", "SIGABRT"])
@pytest.mark.parametrize("lifted", [False, True], ids=["limited", "limit-lifted"])
def test_a_crashed_worker_leaves_no_core(site, dumped, number, lifted):
    site.wrapper = WRAPPER
    worker = site.start()
    assert core_limit(worker.pid) == ["0", "0"]
    if lifted and not lift(worker.pid) and not dumped:
        pytest.skip("the limit cannot be raised here, and no program leaves a core here")
    assert not dies(worker.pid, number)
    worker.wait()
    assert not [path for path in site.folder.rglob("*core*") if path.is_file() and path.parent.name != "other"]


def test_a_crashed_command_leaves_no_core(tmp_path, dumped):
    env = {"PATH": os.environ["PATH"], "LOCAL_STORAGE_PATH": str(tmp_path / "storage")}
    with subprocess.Popen([*WRAPPER, str(BINARY), "store", "k", "-"], cwd=tmp_path, env=env, stdin=subprocess.PIPE) as store:
        wait_until(lambda: core_limit(store.pid) == ["0", "0"], what="the program")
        lift(store.pid)
        assert not dies(store.pid, signal.SIGSEGV)
    cores = [path for path in tmp_path.rglob("*core*") if path.is_file() and path.parent.name != "other"]
    assert not cores, f"another program leaves a core here: {dumped}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_its_own_user_cannot_read_its_memory():
    """As a user without rights, everything works, and neither memory nor environment is readable from outside."""
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        program = shutil.copy(BINARY, folder)
        env = {"PATH": os.environ["PATH"], "LOCAL_STORAGE_PATH": f"{folder}/storage"}
        arguments = {"cwd": folder, "env": env, "stdout": subprocess.PIPE}
        with subprocess.Popen([*user, program, "store", "k", "-"], stdin=subprocess.PIPE, **arguments) as store:
            wait_until(lambda: core_limit(store.pid) == ["0", "0"], what="the program")
            for name in ("mem", "environ", "maps"):
                read = subprocess.run([*user, "head", "-c", "1", f"/proc/{store.pid}/{name}"], capture_output=True, check=False)
                assert read.returncode != 0 and b"ermission denied" in read.stderr, (name, read)
            store.communicate(os.urandom(5 << 20))
        assert store.returncode == 0
        found = subprocess.run([*user, program, "retrieve", "k", "-o", "out"], check=False, **arguments)
        assert found.returncode == 0 and os.path.getsize(f"{folder}/out") == 5 << 20
