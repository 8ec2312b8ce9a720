"""Remote control and events as Celery's own clients see them, beside a Python worker on the same broker."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from harness import QUEUE, TIMEOUT, failure, wait_until

HERE = Path(__file__).parent
pytestmark = pytest.mark.full_rights("whoever may ask workers over the broker may stop them, so producers may not")


@contextmanager
def python_worker(site, *options):
    """A Celery worker in Python on the queue `peer`, ready."""
    env = {**os.environ, "PEER_BROKER_URL": site.broker.url(site.vhost), "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "celery", "-A", "peer", "worker", "-n", "peer@%h", "-c", "2", "-l", "INFO", "-Q", "peer", *options]
    log = (site.folder / "peer.log").open("w")
    worker = subprocess.Popen(command, env=env, cwd=HERE, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "ready." in (site.folder / "peer.log").read_text(), 60, lambda: (site.folder / "peer.log").read_text(), 0.2)
        yield worker
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        log.close()


def ask(site, command, **arguments):
    """Asks all workers and returns the answers by node name, of two workers where both run."""
    answers = site.app.control.broadcast(command, arguments=arguments, reply=True, timeout=1.5, limit=2)
    return {name: answer for one in answers for name, answer in one.items()}


def ours(answers):
    return next(answer for name, answer in answers.items() if name.startswith("e2e@"))


def theirs(answers):
    return next(answer for name, answer in answers.items() if name.startswith("peer@"))


def shape(value, depth=3):
    """The type of a value, with those of its members."""
    if isinstance(value, dict) and depth:
        return {key: shape(member, depth - 1) for key, member in value.items()}
    if isinstance(value, list) and depth:
        return [shape(value[0], depth - 1)] if value else []
    return type(value).__name__


def start(site, *args):
    """Starts a worker and waits until it answers: its queue of requests is there a moment after it takes commands."""
    worker = site.start(*args)
    wait_until(lambda: ask(site, "ping"), 20, "an answer")
    return worker


class Listener:
    """Takes in all events of all workers."""

    def __init__(self, site):
        self.events = []
        self._app = Celery("listener", broker=site.broker.url(site.vhost))
        self._receiver = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def _run(self):
        with self._app.connection() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self.events.append})
            self._receiver = receiver
            receiver.on_consume_ready = lambda *args, **kwargs: self._ready.set()
            receiver.capture(limit=None, timeout=None, wakeup=False)

    def of(self, id):
        return [event for event in self.events if event.get("uuid") == id]

    def close(self):
        self._receiver.should_stop = True
        self._thread.join(10)


@pytest.fixture
def listener(site):
    listener = Listener(site)
    yield listener
    listener.close()


def test_inspect_and_control_find_the_worker(site):
    worker = start(site)
    inspect = site.app.control.inspect(timeout=2)
    assert list(inspect.ping().values()) == [{"ok": "pong"}]
    name = next(iter(inspect.ping()))
    assert site.app.control.inspect([name], timeout=2).ping() and not site.app.control.inspect(["no@body"], timeout=1).ping()
    assert "filestorage.store" in inspect.registered()[name]
    assert [queue["name"] for queue in inspect.active_queues()[name]] == [QUEUE]
    conf = inspect.conf(with_defaults=True)[name]
    assert conf["task_default_queue"] == QUEUE and conf["worker_concurrency"] == 64
    secret = site.broker.url(site.vhost).split("@")[0].rsplit(":", 1)[1]
    assert "***" in conf["broker_url"] and f":{secret}@" not in json.dumps(conf)
    assert "software -> filestorage" in inspect.report()[name]["ok"]
    assert site.call("store", "k", "v")["key"] == "k"
    stats = inspect.stats()[name]
    assert stats["total"] == {"filestorage.store": 1} and stats["broker"]["virtual_host"] == site.vhost
    assert worker.ready()


@pytest.mark.parametrize("command", ["ping", "status", "stats", "active", "reserved", "scheduled", "revoked", "registered",
                                     "active_queues", "conf", "report", "clock", "query_task a b"])
def test_the_command_line_of_celery_reads_the_answers(site, command):
    start(site)
    env = {**os.environ, "PEER_BROKER_URL": site.broker.url(site.vhost), "PYTHONPATH": str(HERE)}
    words = ["status"] if command == "status" else ["inspect", *command.split()]
    done = subprocess.run([sys.executable, "-m", "celery", "-A", "peer", *words, "--timeout", "3"], env=env, cwd=HERE,
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "e2e@" in done.stdout and "1 node online" in done.stdout.replace("nodes", "node"), done.stdout


# What a Python worker answers and ours does not, or in another shape, with the reason.
DIFFERENCES = {
    "stats": "the pool of ours is no pool of processes: `writes` counts what these do; `rate_limits` and `time_limits` are ours",
    "conf": "each worker shows its own settings",
    "registered": "each worker has its own tasks",
    "active": "ours shows the keys of a command and never a value",
}


def test_answers_have_the_shapes_of_a_python_worker(site, capsys):
    start(site)
    rows = []
    with python_worker(site):
        wait_until(lambda: len(ask(site, "ping")) == 2, 30, "two workers")
        with site.held_writes("held"):
            ids = {"ours": site.send("store", "held", "value").id, "theirs": site.app.send_task("peer.slow", [15], queue="peer").id}
            wait_until(lambda: all(len(answer) == 1 for answer in ask(site, "active").values()), 20, "two that run")
            for command, arguments in [
                ("active", {}), ("active", {"safe": True}), ("query_task", {"ids": list(ids.values())}), ("ping", {}), ("stats", {}),
                ("reserved", {}), ("scheduled", {}), ("revoked", {}), ("registered", {}), ("active_queues", {}), ("conf", {}),
                ("report", {}), ("clock", {}), ("hello", {"from_node": "other@host", "revoked": []}),
                ("no_such", {}), ("rate_limit", {"task_name": "no.such", "rate_limit": "1/m"}),
                ("rate_limit", {"task_name": "no.such", "rate_limit": "1/x"}),
                ("time_limit", {"task_name": "no.such", "hard": 1, "soft": 1}), ("autoscale", {"max": 2, "min": 1}),
                ("pool_restart", {}), ("pool_grow", {"n": 1}), ("pool_shrink", {"n": 1}),
                ("add_consumer", {"queue": "extra"}), ("cancel_consumer", {"queue": "extra"}),
                ("enable_events", {}), ("disable_events", {}), ("heartbeat", {}),
                ("revoke", {"task_id": "x"}), ("revoke", {"task_id": "x", "terminate": True, "signal": "KILL"}),
                ("terminate", {"task_id": "x", "signal": "KILL"}),
                ("revoke_by_stamped_headers", {"headers": {"a": "b"}}),
            ]:
                answers = ask(site, command, **arguments)
                assert len(answers) == 2, f"{command}: {answers}"
                own, other = ours(answers), theirs(answers)
                if command == "query_task":
                    own, other = next(iter(own.values())), next(iter(other.values()))
                same = shape(own) == shape(other)
                rows.append((command, "same" if same else DIFFERENCES.get(command)))
                if command in ("stats", "conf", "registered"):
                    assert type(own) is type(other)
                elif command in ("active", "query_task"):
                    keys = lambda answer: sorted((answer[-1] if command == "query_task" else answer[0]).keys())
                    assert keys(own) == keys(other), command
                else:
                    assert same, f"{command} {arguments}: {own} instead of {other}"
                if "error" in (other if isinstance(other, dict) else {}) and command != "rate_limit":
                    assert own == other, command
    with capsys.disabled():
        print()
        for command, same in rows:
            print(f"  {command:<28}{same}")


def test_events_have_the_fields_of_a_python_worker(site, listener):
    start(site, "-E")
    with python_worker(site, "-E"):
        names = lambda: {event["hostname"] for event in listener.events if event["type"] == "worker-heartbeat"}
        wait_until(lambda: len(names()) == 2, 30, names, 0.2)
        ids = {}
        for own, task, args, kwargs in [
            (True, "filestorage.store", ["k", "top secret"], {}), (True, "filestorage.retrieve", ["k"], {}),
            (True, "filestorage.copy", ["missing", "k2"], {}), (False, "peer.echo", [1], {}), (False, "peer.fail", [], {}),
            (True, "filestorage.exists", ["../no key"], {}),
        ]:
            result = site.app.send_task(task, args, kwargs, queue=QUEUE if own else "peer")
            ids[task] = result.id
            wait_until(lambda: any(event["type"] in ("task-succeeded", "task-failed") for event in listener.of(result.id)), 20, task)
        by_type = lambda task: {event["type"]: event for event in listener.of(ids[task])}
        local = {"local_received", "type", "uuid"}
        for own, other, kinds in [
            ("filestorage.store", "peer.echo", ["task-received", "task-started", "task-succeeded"]),
            ("filestorage.copy", "peer.fail", ["task-received", "task-started", "task-failed"]),
            # What ours does not even begin, a Python worker finds out by running it.
            ("filestorage.exists", "peer.fail", ["task-received", "task-started", "task-failed"]),
        ]:
            assert [event["type"] for event in listener.of(ids[own])] == kinds
            for kind in kinds:
                assert set(by_type(own)[kind]) - local == set(by_type(other)[kind]) - local, kind
        heartbeats = {event["hostname"].split("@")[0]: set(event) for event in listener.events if event["type"] == "worker-heartbeat"}
        assert heartbeats["e2e"] == heartbeats["peer"]
        assert "top secret" not in json.dumps(listener.events)
        received = by_type("filestorage.store")["task-received"]
        assert (received["args"], received["kwargs"]) == ("()", "{'key': 'k'}")
        assert by_type("filestorage.retrieve")["task-succeeded"]["result"].endswith("bytes>")


def test_without_the_flag_tasks_are_silent_until_asked_for(site, listener):
    start(site)
    wait_until(lambda: any(event["type"] == "worker-heartbeat" for event in listener.events), 20, "a heartbeat")
    first = site.send("exists", "k")
    first.get(timeout=TIMEOUT)
    assert ours(ask(site, "enable_events")) == {"ok": "task events enabled"}
    second = site.send("exists", "k")
    second.get(timeout=TIMEOUT)
    wait_until(lambda: len(listener.of(second.id)) == 3, 20, lambda: listener.of(second.id))
    assert listener.of(first.id) == []


def test_a_revoked_command_never_runs(site):
    worker = start(site)
    parked = site.send("store", "parked", 1, _countdown=8)
    with site.held_writes("k"):
        running, waiting = site.send("store", "k", 1), site.send("store", "k", 2)
        wait_until(lambda: len(ours(ask(site, "reserved"))) == 1, 20, "one that waits")
        waiting.revoke()
        parked.revoke()
        wait_until(lambda: waiting.id in ours(ask(site, "revoked")), 10, "revoked")
    assert running.get(timeout=TIMEOUT)["key"] == "k"
    assert isinstance(failure(waiting), TaskRevokedError)
    # It is remembered when the worker comes back.
    worker.stop()
    start(site)
    assert isinstance(failure(parked), TaskRevokedError)
    assert site.call("exists", "parked") is False


def test_terminate_ends_a_write_before_it_takes_effect(site):
    start(site)
    with site.held_writes("k"):
        result = site.send("store", "k", 1)
        wait_until(lambda: len(ours(ask(site, "active"))) == 1, 20, "one that runs")
        assert ours(ask(site, "terminate", task_id=[result.id], signal="KILL")) == {"ok": f"terminate: {result.id}"}
        assert isinstance(failure(result), TaskRevokedError)
    assert site.call("exists", "k") is False
    assert ours(ask(site, "revoke", task_id="unknown", terminate=True)) == {"ok": "terminate: tasks unknown"}


def test_control_answers_while_the_worker_is_busy(site):
    start(site)
    results = [site.send("store", f"k/{number}", "x" * 200) for number in range(2000)]
    waits = []
    for _ in range(20):
        began = time.monotonic()
        assert ask_first(site) == {"ok": "pong"}
        waits.append(time.monotonic() - began)
    for result in results:
        result.get(timeout=TIMEOUT)
    print(f"answers under load: {sorted(waits)[10] * 1000:.0f} ms in the middle, {max(waits) * 1000:.0f} ms at most")


def ask_first(site):
    """Returns the first answer at once."""
    answers = site.app.control.broadcast("ping", reply=True, timeout=10, limit=1)
    return next(iter(answers[0].values()))


def test_shutdown_by_remote_control_is_orderly(site):
    worker = start(site)
    with site.held_writes("k"):
        result = site.send("store", "k", 1)
        wait_until(lambda: len(ours(ask(site, "active"))) == 1, 20, "one that runs")
        site.app.control.shutdown()
        time.sleep(1)
    assert result.get(timeout=TIMEOUT)["key"] == "k"
    assert worker.wait(20) == 0


def test_a_second_worker_of_the_same_name_says_so(site):
    start(site)
    second = site.spawn().wait_ready()
    reason = lambda: json.loads(second.http("/readyz")[1])["components"].get("remote_control", {}).get("reason") or ""
    wait_until(lambda: "another worker" in reason(), 20, reason)
    assert site.call("exists", "k") is False


def test_malformed_requests_change_nothing(site):
    worker = start(site)
    for body in [b"", b"\xff", b"[]", b"{", b'{"method": 5}', b'{"method": "shutdown", "destination": 5}',
                 b'{"method": "shutdown", "pattern": "(", "matcher": "pcre"}', b'{"method": "ping", "reply_to": []}',
                 b"[" * 100_000, b'{"method": "revoke", "arguments": []}']:
        for content_type in ("application/json", "application/x-python-serialize", None):
            message = site.raw.message(body, **({"content_type": content_type} if content_type else {}))
            site.raw.channel.basic_publish(message, exchange="celery.pidbox", routing_key="")
    assert ours(ask(site, "ping")) == {"ok": "pong"}
    assert worker.ready() and site.call("exists", "k") is False
    assert worker.log().count("cannot be read; it changes nothing") == 30
