"""What a run needs: the programs, Celery's virtual environment, a private broker, folders."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHES = ROOT / "benches"
WORK = ROOT / "target" / "bench"

# aiecs' own list of requirements is some forty distributions; its FileStorage imports these two.
PYTHON_PACKAGES = ["celery==5.7.0", "redis==8.1.0", "aiofiles==25.1.0", "prometheus_client==0.26.0"]
PYTHON_CLASS = "aiecs==2.2.0"


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def build():
    """Builds what is measured and what measures; returns the executables by target name."""
    say("building the release binary, the load generator, the limit, the bare client and the codecs alone")
    executables = {}
    for targets in (["--bin", "filestorage"], ["--bench", "load", "--bench", "limit", "--bench", "bare", "--bench", "codecs"]):
        command = ["cargo", "build", "--release", "--locked", "--message-format=json-render-diagnostics", *targets]
        output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        for line in output.splitlines():
            message = json.loads(line)
            if message.get("executable"):
                executables[message["target"]["name"]] = message["executable"]
    return executables


def celery_environment():
    """Makes the virtual environment of the peers, once; returns its folder of programs."""
    venv = ROOT / "target" / "bench-venv"
    stamp = venv / "installed"
    wanted = "\n".join([*PYTHON_PACKAGES, PYTHON_CLASS])
    if not stamp.exists() or stamp.read_text() != wanted:
        say("installing the peers into target/bench-venv")
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PYTHON_PACKAGES], check=True)
        subprocess.run([*pip, "--no-deps", PYTHON_CLASS], check=True)
        stamp.write_text(wanted)
    return venv / "bin"


class Broker:
    """A private node of deploy/dev-broker, apart from the one of the tests; never a broker somebody else uses."""

    def __init__(self):
        self.environment = {**os.environ, "DEV_BROKER_DIR": str(ROOT / "target" / "bench-broker")}
        self.environment.pop("CELERY_BROKER_URL", None)

    def __enter__(self):
        say("starting a private broker")
        self._call("start")
        self.url = self._call("url").strip()
        return self

    def __exit__(self, *_):
        self._call("stop")

    def version(self):
        return self._call("ctl", "version").strip().splitlines()[-1]

    def _call(self, *arguments):
        command = [ROOT / "deploy" / "dev-broker", *arguments]
        return subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True).stdout


class Places:
    """The folders values are stored in, by name: memory and disk. Removed at the end."""

    def __init__(self):
        WORK.mkdir(parents=True, exist_ok=True)
        memory = next((folder for folder in ("/dev/shm", "/run") if os.access(folder, os.W_OK)), None)
        self.folders = {"disk": Path(tempfile.mkdtemp(prefix="disk-", dir=WORK))}
        if memory:
            self.folders["tmpfs"] = Path(tempfile.mkdtemp(prefix="filestorage-bench-", dir=memory))
        else:
            say("no tmpfs that can be written: its half is left out")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for folder in self.folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    def fresh(self, place):
        """An empty folder in that place."""
        return Path(tempfile.mkdtemp(dir=self.folders[place]))
