"""Programs beside the pinned ones, each in a virtual environment of its own under `target/clients`: Celery clients of earlier years."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

from harness import ROOT

# Release, the newest Python 3 it runs on, and its packages, of the same time where they matter to the wire.
CLIENTS = {
    "4.4": (10, ["celery==4.4.7", "kombu==4.6.11", "amqp==2.6.1", "vine==1.3.0", "billiard==3.6.4.0", "pytz==2026.6",
                 "importlib-metadata==4.13.0", "setuptools<81"]),
    "5.2": (12, ["celery==5.2.7", "kombu==5.2.4", "amqp==5.1.1", "vine==5.0.0", "billiard==3.6.4.0", "pytz==2026.6",
                 "importlib-metadata==4.13.0", "setuptools<81"]),
    "5.3": (13, ["celery==5.3.6", "kombu==5.3.4", "amqp==5.2.0", "vine==5.1.0", "billiard==4.2.1"]),
    "5.6": (14, ["celery==5.6.3", "kombu==5.6.2", "amqp==5.3.1", "vine==5.1.0", "billiard==4.2.4"]),
    "5.7": (99, None),  # what runs the tests
}


def python_up_to(newest):
    """The Python of the tests where it is old enough, else the newest one that is found beside it and makes environments."""
    if sys.version_info[:2] <= (3, newest):
        return sys.executable
    for minor in range(newest, 7, -1):
        beside = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
        for python in [shutil.which(f"python3.{minor}"), *map(str, beside)]:
            if python and subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0:
                return python
    return None


def environment(release):
    """The Python of this client's environment, made once; raises RuntimeError with the reason why it cannot be had."""
    newest, packages = CLIENTS[release]
    if packages is None:
        return sys.executable
    base = python_up_to(newest)
    if base is None:
        raise RuntimeError(f"Celery {release} needs a Python of 3.{newest} or older, and none was found")
    return packaged(release, base, packages)


def packaged(name, base, packages):
    """The Python of the environment of this name, with these packages of PyPI, made once."""
    folder = ROOT / "target" / "clients" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    made, wanted = folder / "requirements.installed", "\n".join(packages)
    python = folder / "bin" / "python"
    with open(f"{folder}.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists() and made.read_text() == wanted and subprocess.run([python, "-c", ""], check=False).returncode == 0:
            return str(python)
        shutil.rmtree(folder, ignore_errors=True)
        for command in ([base, "-m", "venv", folder], [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode != 0:
                shutil.rmtree(folder, ignore_errors=True)
                raise RuntimeError(f"{packages[0]} cannot be installed here: {(done.stdout + done.stderr).strip()[-300:]}")
        made.write_text(wanted)
    return str(python)
