"""The programs that are compared: how each is started, what its processes cost, how it is stopped."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field

from measure.setup import BENCHES, WORK

TICK = os.sysconf("SC_CLK_TCK")
WARM_UP_KEYS = 800_000_000
FIRST_KEY = 900_000_000
SETTLE_SECONDS = 0.2
SMALL = 200


@dataclass
class Peer:
    """One way to serve the commands."""

    name: str
    title: str
    command: list
    environment: dict = field(default_factory=dict)
    stores: bool = True
    # Python peers answer a tenth as fast and get that many fewer commands.
    slow: bool = False
    events: bool = False


def peers(executables, programs):
    """All of them, by name."""
    worker = [executables["filestorage"], "worker"]
    celery = [
        programs / "celery", "-A", "TASKS", "worker", "-c", "2", "-l", "WARNING",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    ]  # fmt: skip

    def tasks(module):
        return [f"peers.{module}" if part == "TASKS" else part for part in celery]

    known = [
        Peer("limit", "limit: bare confirming lapin consumer", [executables["limit"], "bench.limit"], stores=False),
        Peer("limit-files", "limit, with bare files", [executables["limit"], "bench.limit-files"]),
        Peer("filestorage", "filestorage", worker, events=True),
        Peer("no-events", "filestorage, events off", worker, {"ENABLE_EVENTS": "false"}),
        Peer("uncompressed", "filestorage, compression off", worker, {"ENABLE_COMPRESSION": "false"}, events=True),
        Peer("plain", "Celery -c 2, plain files", tasks("plain_tasks"), slow=True),
        Peer("plain-fsync", "Celery -c 2, plain files, fsync", tasks("plain_tasks"), {"PLAIN_FSYNC": "1"}, slow=True),
        Peer("aiecs", "Celery -c 2, aiecs FileStorage", tasks("aiecs_tasks"), slow=True),
    ]
    return {peer.name: peer for peer in known}


class Running:
    """One started peer, alone on its own queue and an empty folder."""

    def __init__(self, peer, load, broker, folder, extra=()):
        self.peer = peer
        self.load_program = load
        self.broker = broker
        self.folder = folder
        self.queue = f"bench.{peer.name}"
        self.log = WORK / f"{peer.name}.log"
        self.command = [*peer.command, *extra]
        self.environment = {
            **os.environ,
            "CELERY_BROKER_URL": broker,
            "CELERY_TASK_DEFAULT_QUEUE": self.queue,
            "LOCAL_STORAGE_PATH": str(folder),
            **({"LIMIT_FOLDER": str(folder)} if peer.name == "limit-files" else {}),
            "METRICS_PORT": str(free_port()),
            "PYTHONDONTWRITEBYTECODE": "1",
            **peer.environment,
        }

    def __enter__(self):
        """Starts it while one command already waits in its queue."""
        first = self._load("store", 1, FIRST_KEY)
        first.stderr.readline()
        begin = time.time()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command, cwd=BENCHES, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            answer = self._result(first)
            self.start_seconds = answer["first_answer_at"] - begin
            time.sleep(1)
            self.idle_bytes = self.memory()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def measure(self, operation, commands, first=0, window=256, size=SMALL):
        """Drives it with commands; adds what its processes cost to what the load generator saw."""
        time.sleep(SETTLE_SECONDS)
        before = self.cpu_seconds()
        result = self._result(self._load(operation, commands, first, window, size))
        # The last acknowledgements come after the last answer.
        time.sleep(SETTLE_SECONDS)
        result["cpu_seconds_per_1000"] = (self.cpu_seconds() - before) * 1000 / commands
        result["memory_bytes"] = self.memory()
        return result

    def warm_up(self, commands, size=SMALL):
        self._result(self._load("store", commands, WARM_UP_KEYS, min(commands, 256), size))

    def cpu_seconds(self):
        """User and system time of the process, its living descendants and those it has waited for."""
        total = 0
        for pid in self._tree():
            # utime, stime; of the first process also cutime and cstime.
            total += sum(map(int, stat(pid)[11 : 15 if pid == self.process.pid else 13]))
        return total / TICK

    def memory(self):
        """RSS of a single process; of several the sum of PSS, which counts a shared page once."""
        tree = self._tree()
        if len(tree) == 1:
            return status_bytes(f"/proc/{tree[0]}/status", "VmRSS:")
        return sum(status_bytes(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in tree)

    def _tree(self):
        children = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    children.setdefault(int(stat(entry)[1]), []).append(int(entry))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        found = [self.process.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found

    def _load(self, operation, commands, first, window=256, size=SMALL):
        command = [
            self.load_program, self.queue, "--broker", self.broker, "--operation", operation,
            "--commands", str(commands), "--first", str(first), "--window", str(window), "--size", str(size),
        ]  # fmt: skip
        if self.peer.stores:
            command.append("--check-values")
        # The Python class answers None for what it compressed and stored without any.
        if size != SMALL and operation == "store":
            command.append("--metadata")
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _result(self, load):
        output, errors = load.communicate()
        if load.returncode != 0:
            raise RuntimeError(f"{self.peer.name}: {errors.strip()}")
        result = json.loads(output)
        if result["unanswered"] == result["commands"]:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.peer.name} answered nothing; its log ends with:\n{tail}")
        return result


def stat(pid):
    """The fields of /proc/<pid>/stat after the name, which may hold spaces: state, parent, …"""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def status_bytes(path, name):
    with open(path) as file:
        line = next(line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
