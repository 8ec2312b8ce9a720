"""What the end-to-end tests are made of: a broker, a site with its own vhost and folder, workers, raw messages."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

import amqp
import pytest
from celery import Celery

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("FILESTORAGE_BIN", ROOT / "target" / "debug" / "filestorage"))
ROLES = ("worker", "producer", "monitor")
TIMEOUT = 20.0  # seconds any single answer may take before the test calls it lost
QUEUE = "filestorage"
DEAD = "filestorage.dead"
METRICS = "filestorage.metrics"
LOCKS = "#locks"
# Workers and clients log in as users who may do no more than they must, as deploy/rabbitmq/definitions says; `0` turns it
# off. A test marked `full_rights` gets an empty vhost, in which everybody is the broker's own user.
LEAST_PRIVILEGE = os.environ.get("FILESTORAGE_TEST_LEAST_PRIVILEGE", "1") != "0"

# Celery takes these before what its application says; the tests name their broker themselves.
for inherited in [name for name in os.environ if name.startswith("CELERY_")]:
    del os.environ[inherited]


def wait_until(condition, timeout=TIMEOUT, what="the condition", step=0.02):
    """Returns the first truthy value of `condition()`; fails with `what` (a text or a function) after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for {what() if callable(what) else what}; last value {value!r}")
        time.sleep(step)


def crc32c(data):
    """The Castagnoli checksum, bit by bit: slow, and independent of the program under test."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


class Broker:
    """A RabbitMQ node that the tests may command with `rabbitmqctl`, restart and kill."""

    def __init__(self):
        self._dev = [str(ROOT / "deploy" / "dev-broker")]
        self._env = dict(os.environ)
        self._own = False
        given = os.environ.get("FILESTORAGE_TEST_BROKER_URL")
        control = os.environ.get("FILESTORAGE_TEST_RABBITMQCTL")
        if given and control:
            self._ctl = shlex.split(control)
        else:
            self._env.setdefault("DEV_BROKER_DIR", str(ROOT / "target" / "dev-broker-e2e"))
            # Tests restart their broker: each of several processes has its own.
            self._env["DEV_BROKER_DIR"] += os.environ.get("PYTEST_XDIST_WORKER", "")
            given = self._run("start").strip()
            self._ctl = [*self._dev, "ctl"]
            self._own = True
        self._take(given)
        # Only what deploy/dev-broker started can be restarted; a broker given from outside is left alone.
        self.can_restart = any(part.endswith("dev-broker") for part in self._ctl)
        self._vhosts = {True: [], False: []}
        self._made = []
        self._retired = []
        self.prefix = f"e2e-{uuid.uuid4().hex[:8]}-"
        self._users = []

    def _take(self, url):
        """Reads amqp://user:password@host:port/..."""
        match = re.fullmatch(r"amqp://([^:]*):([^@]*)@([^:/]+):(\d+)/.*", url)
        assert match, f"the tests need a URL of the form amqp://user:password@host:port//, not {url}"
        self.user, self.password, self.host, port = match.groups()
        self.port = int(port)

    def _run(self, *args):
        done = subprocess.run(
            [*self._dev, *args], env=self._env, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"dev-broker {args}: {done.stdout}{done.stderr}"
        return done.stdout

    def ctl(self, *args, timeout=60):
        """Runs rabbitmqctl and returns what it prints."""
        done = subprocess.run(
            [*self._ctl, *args], env=self._env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"rabbitmqctl {args}: {done.stdout}{done.stderr}"
        return done.stdout

    def url(self, vhost, user=None, password=None):
        return f"amqp://{user or self.user}:{password or self.password}@{self.host}:{self.port}/{vhost}"

    def least(self, vhost, role):
        """The URL of the user `worker`, `producer` or `monitor` of `definitions`."""
        return self.url(vhost, user=self.prefix + role, password=self.prefix + role)

    def definitions(self, vhost, *options):
        """What deploy/rabbitmq/definitions prints, for users whose names are this run's own."""
        command = [str(ROOT / "deploy" / "rabbitmq" / "definitions"), "--queue-type", "classic", "--vhost", vhost, *options]
        with tempfile.TemporaryDirectory() as passwords:
            for role in ROLES:
                (Path(passwords) / role).write_text(f"{self.prefix}{role}\n")
            done = subprocess.run([*command, "--passwords", passwords], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        what = json.loads(done.stdout)
        for user in what["users"]:
            user["name"] = self.prefix + user["name"]
        for permission in what["permissions"]:
            permission["user"] = self.prefix + permission["user"]
        self._users = [user["name"] for user in what["users"]]
        return what

    @staticmethod
    def _import(what):
        text = base64.b64encode(json.dumps(what, separators=(",", ":")).encode()).decode()
        return f'ok = rabbit_definitions:import_raw(base64:decode("{text}"))'

    def import_definitions(self, what):
        """Imports them as `rabbitmqctl import_definitions` does, which wants a file on the broker's side."""
        self.ctl("eval", self._import(what) + ", ok.")

    def new_vhost(self, full_rights=True):
        """Hands out a vhost; several are made at a time because each rabbitmqctl costs half a second."""
        pool = self._vhosts[full_rights]
        if not pool:
            pool += [f"e2e-{uuid.uuid4().hex[:8]}" for _ in range(6)]
            lines = []
            for name in pool:
                lines.append(f'ok = rabbit_vhost:add(<<"{name}">>, <<"e2e">>)')
                lines.append(
                    f'rabbit_auth_backend_internal:set_permissions(<<"{self.user}">>, <<"{name}">>,'
                    ' <<".*">>, <<".*">>, <<".*">>, <<"e2e">>)'
                )
                if not full_rights:
                    lines.append(self._import(self.definitions(name)))
            self.ctl("eval", ", ".join([*self._removals(), *lines]) + ", ok.", timeout=300)
            self._made += pool
        return pool.pop()

    def retire(self, vhost):
        """Takes back a vhost that nobody needs any more; it is removed with the next call of rabbitmqctl."""
        self._retired.append(vhost)

    def _removals(self):
        retired, self._retired = self._retired, []
        self._made = [name for name in self._made if name not in retired]
        return [f'catch rabbit_vhost:delete(<<"{name}">>, <<"e2e">>)' for name in retired]

    def _spare(self):
        """Removes what a node would have to recover at its start, one vhost after another."""
        removals = self._removals()
        if removals:
            self.ctl("eval", ", ".join(removals) + ", ok.", timeout=300)

    def restart(self):
        self._spare()
        self._run("restart")
        self.start()

    def kill(self):
        self._spare()
        self._run("kill")

    def start(self):
        url = self._run("start").strip()
        before = self.port
        self._take(url)
        if self.port != before:
            # Only this test has lost its broker, not all that follow.
            self._vhosts, self._made, self._retired = {True: [], False: []}, [], []
            raise AssertionError(f"the node on port {before} did not start again; a new one on {self.port} has no data")

    def queues(self, vhost):
        """Maps queue name to (ready, unacknowledged)."""
        rows = self.ctl(
            "list_queues", "-p", vhost, "name", "messages_ready", "messages_unacknowledged", "--formatter", "json"
        )
        return {row["name"]: (row["messages_ready"], row["messages_unacknowledged"]) for row in json.loads(rows)}

    def close(self):
        if self._own:
            self._run("stop")
        elif self._made:
            names, users = (", ".join(f'<<"{name}">>' for name in some) for some in (self._made, self._users))
            self.ctl(
                "eval",
                f'[catch rabbit_vhost:delete(V, <<"e2e">>) || V <- [{names}]],'
                f' [catch rabbit_auth_backend_internal:delete_user(U, <<"e2e">>) || U <- [{users}]], ok.',
            )


class Worker:
    """One `filestorage worker` process; its log is kept in a file beside the storage folder."""

    def __init__(self, env, log, args=(), wrapper=()):
        self.log_path = log
        self._log = open(log, "ab")
        self._start = self._log.tell()
        self.process = subprocess.Popen(
            [*wrapper, str(BINARY), "worker", *args],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=log.parent,
        )
        self.pid = self.process.pid
        self._port = None

    def log(self):
        with open(self.log_path, "rb") as file:
            file.seek(self._start)
            return file.read().decode("utf-8", "replace")

    def log_lines(self):
        """The JSON objects of the log, one a line."""
        found = []
        for line in self.log().splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found

    def panics(self):
        """What the log tells of panics: the panic hook's lines, and what the runtime prints where there is no hook yet."""
        hooked = [line for line in self.log_lines() if line.get("message") == "panic"]
        return hooked + re.findall(r"^thread .* panicked at .*$", self.log(), re.M)

    @property
    def port(self):
        """The admin port, as the log names it."""
        if self._port is None:
            self._port = wait_until(self._find_port, what=lambda: f"the admin port in the log:\n{self.log()}")
        return self._port

    def _find_port(self):
        self.assert_alive()
        for line in self.log_lines():
            port = line.get("port")
            if port is not None and str(port).isdigit() and int(port) > 0:
                return int(port)
        return None

    def http(self, path, timeout=5):
        """Returns (status, text) of the admin listener."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ready(self):
        return self.http("/readyz")[0] == 200

    def wait_ready(self, timeout=30):
        wait_until(lambda: self.assert_alive() and self.ready(), timeout, self._unready)
        return self

    def _unready(self):
        return f"readiness: {self.http('/readyz')}; the log:\n{self.log()[-4000:]}"

    def assert_alive(self):
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.log()[-4000:]}"
        return True

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=30):
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker did not end within {timeout} s:\n{self.log()[-4000:]}") from None

    def kill(self):
        """Ends the worker as the kernel's out-of-memory killer would."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, timeout=30):
        """Asks for a warm shutdown and returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def close(self):
        self.kill()
        self._log.close()


class Site:
    """A vhost, a storage folder, a Celery client and the workers on them."""

    def __init__(self, broker, folder, full_rights=not LEAST_PRIVILEGE):
        self.broker = broker
        self.folder = folder
        self.storage = folder / "storage"
        self.vhost = broker.new_vhost(full_rights)
        self.url = broker.url(self.vhost) if full_rights else broker.least(self.vhost, "worker")
        self.client_url = broker.url(self.vhost) if full_rights else broker.least(self.vhost, "producer")
        self.app = self.client()
        self.workers = []
        self.wrapper = ()  # a command that runs the worker
        self.may_panic = lambda line: False  # a test that provokes a panic says which one
        self._raw = None

    def client(self, **settings):
        """An unmodified Celery application with the rpc:// result backend."""
        app = Celery("e2e", broker=self.client_url, backend="rpc://", set_as_current=False)
        app.conf.update(task_default_queue=QUEUE, broker_connection_retry_on_startup=True, **settings)
        return app

    def env(self, **extra):
        env = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "RUST_BACKTRACE")}
        env.update(
            CELERY_BROKER_URL=self.url,
            LOCAL_STORAGE_PATH=str(self.storage),
            METRICS_PORT="0",
        )
        env.update({key: str(value) for key, value in extra.items()})
        return env

    def spawn(self, *args, name="e2e", queues=QUEUE, **env):
        """Starts a worker without waiting for it."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        worker = Worker(self.env(**env), log, ("-n", f"{name}@%h", "-Q", queues, *args), self.wrapper)
        self.workers.append(worker)
        return worker

    def start(self, *args, **env):
        return self.spawn(*args, **env).wait_ready()

    def send(self, task, *args, **kwargs):
        """Sends `filestorage.<task>`; keywords that start with `_` are options of apply_async."""
        options = {key[1:]: kwargs.pop(key) for key in list(kwargs) if key.startswith("_")}
        return self.app.send_task(f"filestorage.{task}", args, kwargs, **options)

    def call(self, task, *args, **kwargs):
        """Sends and waits; a failure is raised as the exception that the worker named."""
        return self.send(task, *args, **kwargs).get(timeout=TIMEOUT)

    def sig(self, task, *args, immutable=False, **kwargs):
        return self.app.signature(f"filestorage.{task}", args=args, kwargs=kwargs, immutable=immutable)

    @property
    def raw(self):
        if self._raw is None:
            self._raw = Raw(self.broker, self.vhost)
        return self._raw

    def queues(self):
        return self.broker.queues(self.vhost)

    def object_files(self):
        """Every file under `objects/` but the locks; what is being written included."""
        root = self.storage / "objects"
        return [path for path in root.rglob("*") if path.is_file() and path.parent != root / LOCKS]

    @contextmanager
    def held_writes(self, key):
        """Holds the lock of the key's shard, as another writer would: a write of the key runs until this is let go."""
        path = self.storage / "objects" / LOCKS / f"{crc32c(key.encode()) % 256:02x}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def reconnect(self):
        """Forgets connections that a restart of the broker broke."""
        if self._raw is not None:
            self._raw.close()
            self._raw = None

    def close(self):
        for worker in self.workers:
            worker.close()
        if self._raw is not None:
            self._raw.close()
        self.app.close()
        self.broker.retire(self.vhost)
        shutil.rmtree(self.storage, ignore_errors=True)
        panics = [line for worker in self.workers for line in worker.panics() if not self.may_panic(line)]
        assert not panics, f"a worker panicked: {panics}"


class Raw:
    """AMQP without Celery: whatever bytes and headers a foreign or broken producer may send."""

    def __init__(self, broker, vhost):
        self._connection = amqp.Connection(
            host=f"{broker.host}:{broker.port}",
            userid=broker.user,
            password=broker.password,
            virtual_host=vhost,
            confirm_publish=True,
        )
        self._connection.connect()
        self.channel = self._connection.channel()
        self.channel.auto_decode = False  # bodies stay bytes, whatever their headers claim

    def reply_queue(self):
        name = f"reply-{uuid.uuid4()}"
        self.channel.queue_declare(name, durable=False, exclusive=True, auto_delete=False)
        return name

    def declare(self, name, **options):
        return self.channel.queue_declare(name, durable=True, auto_delete=False, **options)

    def publish(self, body, headers=None, queue=QUEUE, **properties):
        self.channel.basic_publish(self.message(body, headers, **properties), exchange="", routing_key=queue)

    @staticmethod
    def message(body, headers=None, **properties):
        if isinstance(body, str):
            body = body.encode("utf-8", "surrogatepass")
        return amqp.Message(body, application_headers=headers or {}, **properties)

    def command(self, task, args, kwargs=None, headers=None, reply_to=None, task_id=None, embed=None, body=None, **properties):
        """Publishes a protocol 2 command in the smallest valid form and returns its id."""
        task_id = task_id or str(uuid.uuid4())
        table = {"task": f"filestorage.{task}" if "." not in task else task, "id": task_id, **(headers or {})}
        if body is None:
            body = json.dumps([args, kwargs or {}, embed if embed is not None else {}])
        properties.setdefault("content_type", "application/json")
        properties.setdefault("content_encoding", "utf-8")
        if reply_to:
            properties.setdefault("reply_to", reply_to)
        properties.setdefault("correlation_id", task_id)
        self.publish(body, table, **properties)
        return task_id

    def get(self, queue, timeout=TIMEOUT):
        """Takes one message; its `json` is the decoded body when that is JSON."""
        message = wait_until(lambda: self.channel.basic_get(queue, no_ack=True), timeout, f"a message in {queue}")
        return self._opened(message)

    def drain(self, queue):
        """Takes everything that is ready now."""
        taken = []
        while True:
            message = self.channel.basic_get(queue, no_ack=True)
            if message is None:
                return taken
            taken.append(self._opened(message))

    def count(self, queue):
        return self.channel.queue_declare(queue, passive=True).message_count

    @staticmethod
    def _opened(message):
        message.raw = message.body or b""  # amqp makes a text of nothing
        try:
            message.json = json.loads(message.body)
        except ValueError:
            message.json = None
        message.properties.setdefault("application_headers", {})  # what `message.headers` reads
        return message

    def close(self):
        try:
            self._connection.close()
        except (OSError, amqp.AMQPError):
            pass  # the broker may have been killed by the test


def events_of(raw, queue=METRICS):
    """Every CloudEvent that waits in `queue`, batches opened."""
    found = []
    for message in raw.drain(queue):
        kind = message.properties.get("content_type")
        if kind == "application/cloudevents+json":
            assert isinstance(message.json, dict)
            found.append(message.json)
        else:
            assert kind == "application/cloudevents-batch+json", kind
            assert isinstance(message.json, list) and message.json
            found += message.json
    return found


def wait_events(raw, wanted, queue=METRICS, timeout=TIMEOUT):
    """Waits until `wanted` events (a number, or a test of the list) have come; returns all that came."""
    enough = wanted if callable(wanted) else lambda found: len(found) >= wanted
    found = []

    def more():
        found.extend(events_of(raw, queue))
        return enough(found)

    wait_until(more, timeout, lambda: f"events in {queue}: {found}")
    return found


@contextmanager
def running_undisturbed(site, worker):
    """Runs a store as long as this lasts: it is neither given back nor run again, and the worker stays ready in one session."""
    sessions = worker.log().count("worker ready")
    ready, over = [], threading.Event()

    def watch():
        while not over.wait(0.1):
            ready.append(worker.ready())

    watcher = threading.Thread(target=watch)
    with site.held_writes("slow"):
        result = site.send("store", "slow", "value")
        wait_until(lambda: site.queues().get(QUEUE, (0, 0))[1] == 1, what="the command to be delivered", step=0.1)
        watcher.start()
        try:
            yield
            assert not result.ready()
        finally:
            over.set()
            watcher.join()
    assert result.get(timeout=TIMEOUT)["key"] == "slow"
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what=site.queues, step=0.2)
    own = [event["data"]["task_id"] for event in events_of(site.raw)].count(result.id)
    assert own == 1, f"{own} runs"
    assert ready and all(ready)
    assert worker.log().count("worker ready") == sessions and "given back" not in worker.log()


def same(left, right):
    """Equal in value and in type at every depth; tells -0.0 from 0.0 and lets nan be nan."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return repr(left) == repr(right)
    return left == right


def failure(result, timeout=TIMEOUT):
    """Waits for a failed command and returns the exception its caller gets."""
    value = result.get(timeout=timeout, propagate=False)
    assert result.state in ("FAILURE", "REVOKED"), f"{result.state}: {repr(value)[:300]}"
    return value


if sys.platform == "win32":
    raise RuntimeError("the end-to-end tests need a Unix system")


def on_small_disk(site):
    """Starts a worker whose storage folder is a tmpfs of 4 MiB, for a fixture; what it yields is the site."""
    site.storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "filestorage-e2e", str(site.storage)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        try:
            site.start()
            yield site
        finally:
            for worker in site.workers:
                worker.close()
            subprocess.run(["umount", "-l", str(site.storage)], check=True)
        return
    # Without the right to mount, a namespace where one is root; the disk is the worker's own and goes with it.
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    tried = subprocess.run([*apart, *mount], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a small tmpfs can be mounted neither here ({done.stderr.strip()}) nor apart ({tried.stderr.strip()})")
    site.wrapper = (*apart, "sh", "-c", '"$0" "$1" "$2" "$3" "$4" "$5" "$6" && shift 6 && exec "$@"', *mount)
    worker = site.start()
    site.storage = Path(f"/proc/{worker.pid}/root{site.storage}")
    yield site
