"""Users who may do no more than they must, as deploy/rabbitmq/definitions says: they can work, and they can do nothing else."""

import base64
import json
import subprocess
import urllib.error
import urllib.request
import uuid
from datetime import datetime, timedelta, timezone

import amqp
import kombu
import pytest

from harness import DEAD, METRICS, QUEUE, ROLES, ROOT, TIMEOUT, Site, events_of, failure, wait_events, wait_until
from private import PrivateBroker, free_port

DELAYS = [100 << doublings for doublings in range(25)]
INVALIDATIONS = "filestorage.invalidations"
GENERATOR = ROOT / "deploy" / "rabbitmq" / "definitions"


class Guarded(Site):
    """A site whose broker has what deploy/rabbitmq/definitions prints, with options."""

    def __init__(self, broker, folder, *options):
        super().__init__(broker, folder, full_rights=False)
        if options:
            broker.import_definitions(broker.definitions(self.vhost, *options))

    def log_in(self, role):
        """A channel of one of the users; a refusal ends it, so each attempt takes a new one."""
        connection = amqp.Connection(
            host=f"{self.broker.host}:{self.broker.port}",
            userid=self.broker.prefix + role,
            password=self.broker.prefix + role,
            virtual_host=self.vhost,
        )
        connection.connect()
        self._connections.append(connection)
        return connection.channel()

    _connections = ()

    def refused(self, role, attempt):
        """Asserts that the broker refuses `attempt`, a function of a channel, for want of a right."""
        channel = self.log_in(role)
        with pytest.raises(amqp.AccessRefused):
            attempt(channel)

    def grant(self, role, configure, write, read):
        self.broker.ctl("set_permissions", "-p", self.vhost, self.broker.prefix + role, configure, write, read)

    def close(self):
        for connection in self._connections:
            try:
                connection.close()
            except (OSError, amqp.AMQPError):
                pass
        super().close()


@pytest.fixture
def guarded(request, broker, tmp_path):
    site = Guarded(broker, tmp_path, *getattr(request, "param", ()))
    site._connections = []
    yield site
    site.close()


def own_queue(channel):
    """Declares the one queue that a worker may: exclusive, and named like those by which it hears of changes."""
    return channel.queue_declare(f"{INVALIDATIONS}.{uuid.uuid4()}", exclusive=True).queue


def taking_nothing(channel, queue):
    channel.basic_get(queue)


# --- what they can ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confirm", [True, False], ids=["confirmed", "unconfirmed"])
@pytest.mark.parametrize("guarded", [(), ("--strict-producer",)], ids=["declaring", "strict"], indirect=True)
def test_the_main_job_needs_no_more_rights(request, guarded, confirm):
    site = guarded
    site.app.close()
    settings = {"broker_transport_options": {"confirm_publish": True}} if confirm else {}
    if "strict" in request.node.name:
        # The one line that a strict producer needs: it may not declare the queue that is there.
        settings["task_queues"] = [kombu.Queue(QUEUE, no_declare=True)]
    site.app = site.client(**settings)
    worker = site.start(CELERY_BROKER_URL=site.url)

    assert site.call("store", "a", {"n": 2**70}, metadata={"who": "Ada"})["key"] == "a"
    assert site.call("retrieve", "a") == {"n": 2**70}
    assert site.call("delete", "a") is True
    assert site.call("retrieve", "a") is None
    site.send("store", "later", 1, _countdown=1.2).get(timeout=TIMEOUT)
    assert site.call("retrieve", "later") == 1
    chain = site.sig("store", "first", "chained") | site.sig("retrieve", "first", immutable=True)
    assert chain.apply_async().get(timeout=TIMEOUT) == "chained"
    back = site.sig("store", "back", 1, immutable=True)
    site.send("exists", "first", _link=back).get(timeout=TIMEOUT)
    wait_until(lambda: site.call("exists", "back"), what="the callback")
    error = failure(site.send("nothing"))
    assert type(error).__name__ == "NotRegistered"

    assert "NotRegistered" in site.raw.get(DEAD).headers["x-filestorage-dead-exception"]
    operations = {event["data"]["operation"] for event in wait_events(site.raw, 9)}
    assert operations == {"store", "retrieve", "delete", "exists"}
    assert worker.ready()
    trouble = [line["message"] for line in worker.log_lines() if line["level"] in ("WARN", "ERROR")]
    assert trouble == ["cannot be run"], worker.log()


@pytest.mark.parametrize("guarded", [("--reads-metrics", "monitor")], indirect=True)
def test_only_the_named_user_may_take_the_metric_events(guarded):
    guarded.start()
    guarded.call("store", "k", 1)
    url = guarded.broker.least(guarded.vhost, "monitor")
    came = []
    with kombu.Connection(url) as connection:
        queue = kombu.Queue(METRICS, no_declare=True)
        with kombu.Consumer(connection, [queue], callbacks=[lambda body, message: (came.append(body), message.ack())]) as consumer:
            consumer.connection.drain_events(timeout=TIMEOUT)
    assert "store" in str(came)
    guarded.refused("producer", lambda channel: taking_nothing(channel, METRICS))
    guarded.refused("monitor", lambda channel: taking_nothing(channel, DEAD))


@pytest.fixture
def own_site(tmp_path):
    """A site on a node of its own: rabbitmqctl exports all of a node, and cannot write the names other tests make on theirs."""
    node = PrivateBroker(tmp_path, {})
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(node, folder, full_rights=True)
    yield site
    site.close()
    node.close()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_the_definitions_match_what_a_full_worker_declares(own_site, kind):
    site = own_site
    site.start(CELERY_TASK_DEFAULT_QUEUE_TYPE=kind, CELERY_TASK_QUEUE_MAX_PRIORITY="" if kind == "quorum" else 7)
    for step in DELAYS:
        site.raw.command("exists", ["k"], headers={"eta": (now_plus(step * 1.5)).isoformat()})
    # The queues by which a worker hears of changes and of requests belong to its connection, and to no definitions.
    wait_until(lambda: len(site.queues()) == len(DELAYS) + 9, 60, what=site.queues, step=0.5)
    exported = json.loads(site.broker.ctl("export_definitions", "-"))

    options = ["--queue-type", kind, *([] if kind == "quorum" else ["--max-priority", "7"])]
    printed = site.broker.definitions(site.vhost, *options)
    for what in ("queues", "exchanges", "bindings"):
        made = [plain(one) for one in exported[what] if one.get("vhost") == site.vhost and is_kept(one)]
        ours = [plain(one) for one in printed[what] if is_kept(one)]
        assert sorted(made) == sorted(ours), what


def is_kept(one):
    """Whether it outlives its connection: RabbitMQ exports the binding of an exclusive queue without the queue."""
    # Celery's transient exchanges are made by whoever needs them first.
    if one.get("durable") is False:
        return False
    destination = one.get("destination", "")
    return not destination.startswith(f"{INVALIDATIONS}.") and not destination.endswith(".celery.pidbox")


def plain(one):
    """One definition as text that can be compared; what RabbitMQ leaves out or adds by version is not looked at."""
    one = {key: value for key, value in one.items() if key != "internal"}
    if one.get("type") in ("classic", "quorum"):
        del one["type"]
    # RabbitMQ 4 says of a classic queue that it is one.
    one["arguments"] = {name: value for name, value in one["arguments"].items() if (name, value) != ("x-queue-type", "classic")}
    return json.dumps(one, sort_keys=True)


def now_plus(milliseconds):
    return datetime.now(timezone.utc) + timedelta(milliseconds=milliseconds)


# --- what they can not -----------------------------------------------------------------------------------------------


def test_the_worker_can_do_nothing_else(guarded):
    reply = guarded.raw.reply_queue()
    guarded.raw.declare("foreign")
    guarded.log_in("worker").basic_cancel(guarded.log_in("worker").basic_consume(QUEUE))  # what it may
    attempts = {
        "declare a queue": lambda channel: channel.queue_declare("mine"),
        "declare a queue of its connection": lambda channel: channel.queue_declare("", exclusive=True),
        "declare an exchange": lambda channel: channel.exchange_declare("mine", "direct"),
        "delete its queue": lambda channel: channel.queue_delete(QUEUE),
        "delete an exchange": lambda channel: channel.exchange_delete("filestorage.events"),
        "bind": lambda channel: channel.queue_bind(QUEUE, "filestorage.events", "#"),
        "hear the events": lambda channel: channel.queue_bind(own_queue(channel), "filestorage.events", "#"),
        "have its queue copied": lambda channel: channel.queue_bind(QUEUE, INVALIDATIONS, ""),
        "unbind": lambda channel: channel.queue_unbind(METRICS, "filestorage.events", "#"),
        **{f"take from {name}": lambda channel, name=name: taking_nothing(channel, name) for name in (DEAD, METRICS, "foreign", "filestorage.delay.100")},
        "purge the dead": lambda channel: channel.queue_purge(DEAD),
        "publish to an exchange": lambda channel: (channel.basic_publish(amqp.Message("x"), "amq.topic", "k"), channel.queue_declare(QUEUE, passive=True)),
    }
    for what, attempt in attempts.items():
        try:
            guarded.refused("worker", attempt)
        except pytest.fail.Exception:
            pytest.fail(f"the worker may {what}")
    assert guarded.raw.count(reply) == 0


@pytest.mark.parametrize("guarded", [(), ("--strict-producer",)], ids=["declaring", "strict"], indirect=True)
def test_the_producer_can_do_nothing_else(request, guarded):
    guarded.raw.declare("foreign")
    attempts = {
        "declare another queue": lambda channel: channel.queue_declare("mine"),
        "declare an exchange": lambda channel: channel.exchange_declare("mine", "direct"),
        **{f"delete {name}": lambda channel, name=name: channel.queue_delete(name) for name in (DEAD, METRICS, "foreign", "filestorage.delay.100")},
        **{f"take from {name}": lambda channel, name=name: taking_nothing(channel, name) for name in (DEAD, METRICS, "foreign", "filestorage.delay.100")},
        "bind to the events": lambda channel: channel.queue_bind(channel.queue_declare("", exclusive=True).queue, "filestorage.events", "#"),
        "hear of changes": lambda channel: channel.queue_bind(channel.queue_declare("", exclusive=True).queue, INVALIDATIONS, ""),
        "empty caches": lambda channel: (channel.basic_publish(amqp.Message("x"), INVALIDATIONS, ""), channel.queue_declare(QUEUE, passive=True)),
        "forge an event": lambda channel: (channel.basic_publish(amqp.Message("x"), "filestorage.events", "store.succeeded"), channel.queue_declare(QUEUE, passive=True)),
    }
    strict = {
        "delete the command queue": lambda channel: channel.queue_delete(QUEUE),
        "purge the command queue": lambda channel: channel.queue_purge(QUEUE),
        "take others' commands": lambda channel: taking_nothing(channel, QUEUE),
        "declare the command queue": lambda channel: channel.queue_declare(QUEUE, durable=True, auto_delete=False),
    }
    if "strict" in request.node.name:
        attempts |= strict
    for what, attempt in attempts.items():
        try:
            guarded.refused("producer", attempt)
        except pytest.fail.Exception:
            pytest.fail(f"the producer may {what}")


def test_the_monitor_can_do_nothing(guarded):
    for attempt in (
        lambda channel: taking_nothing(channel, QUEUE),
        lambda channel: taking_nothing(channel, METRICS),
        lambda channel: channel.queue_delete(QUEUE),
        lambda channel: channel.queue_declare("mine"),
        lambda channel: (channel.basic_publish(amqp.Message("x"), "", QUEUE), channel.queue_declare(QUEUE, passive=True)),
    ):
        guarded.refused("monitor", attempt)
    users = dict(line.split("\t") for line in guarded.broker.ctl("list_users").splitlines()[1:])
    assert users[guarded.broker.prefix + "monitor"] == "[monitoring]"
    assert users[guarded.broker.prefix + "worker"] == users[guarded.broker.prefix + "producer"] == "[]"


def test_the_monitor_sees_queues_over_http_and_takes_nothing(tmp_path):
    port = free_port()
    settings = {"management.tcp.port": port, "management.tcp.ip": "127.0.0.1"}
    node = PrivateBroker(tmp_path, settings, plugins="rabbitmq_management")
    try:
        vhost = node.new_vhost(full_rights=False)

        def ask(method, path, body=None):
            headers = {"Authorization": "Basic " + base64.b64encode(f"{node.prefix}monitor:{node.prefix}monitor".encode()).decode()}
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", data, headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                    return answer.status, json.loads(answer.read() or "null")
            except urllib.error.HTTPError as error:
                return error.code, None

        status, queue = wait_until(lambda: (found := ask("GET", f"queues/{vhost}/{QUEUE}"))[0] == 200 and found, what="the queue")
        assert queue["name"] == QUEUE
        assert ask("GET", "overview")[0] == 200
        take = {"count": 1, "ackmode": "ack_requeue_false", "encoding": "auto"}
        for name in (QUEUE, DEAD, METRICS):
            assert ask("POST", f"queues/{vhost}/{name}/get", take)[0] in (400, 401, 403)
            assert ask("DELETE", f"queues/{vhost}/{name}/contents")[0] in (400, 401, 403)
            assert ask("DELETE", f"queues/{vhost}/{name}")[0] in (400, 401, 403)
        assert ask("PUT", "users/mine", {"password": "x", "tags": "administrator"})[0] in (401, 403)
        assert QUEUE in node.queues(vhost)
    finally:
        node.close()


# --- what is said when a right is missing ----------------------------------------------------------------------------

CHANGES = r"filestorage\.invalidations(\..*)?"
WORKER = (r"^filestorage\.invalidations\..*$", rf"^(amq\.default|filestorage\.events|filestorage\.delay\.[0-9]+|{CHANGES})$", f"^({QUEUE}|{CHANGES})$")


@pytest.mark.parametrize(
    "configure, write, read, missing",
    [
        (*WORKER[:2], "^$", f"read permission on queue '{QUEUE}'"),
        (WORKER[0], r"^(filestorage\.events|filestorage\.delay\.[0-9]+)$", WORKER[2], "write permission on exchange 'amq.default'"),
    ],
    ids=["read", "answer"],
)
def test_a_worker_that_cannot_work_says_which_right_is_missing(guarded, configure, write, read, missing):
    guarded.grant("worker", configure, write, read)
    result = guarded.send("store", "k", 1)
    worker = guarded.spawn()
    assert worker.wait(30) == 78
    said = [line for line in worker.log().splitlines() if missing in line]
    assert said and f"user '{guarded.broker.prefix}worker'" in said[-1] and guarded.vhost in said[-1], worker.log()
    assert guarded.raw.count(QUEUE) == 1, "the command waits for a worker who may answer it"
    guarded.grant("worker", *WORKER)
    guarded.start()
    assert result.get(timeout=TIMEOUT)["key"] == "k"


def test_a_right_to_answer_that_is_taken_away_loses_no_command(guarded):
    worker = guarded.start()
    guarded.call("store", "k", 1)
    guarded.grant("worker", WORKER[0], "^$", WORKER[2])
    # The broker remembers for each channel what it has granted: a new session asks again.
    guarded.broker.ctl("close_all_connections", "-p", guarded.vhost, "tested")
    wait_until(lambda: "write permission on exchange 'amq.default'" in worker.http("/readyz")[1], 30, worker.log)
    app = guarded.client()
    result = app.send_task("filestorage.store", ["late", 1])
    guarded.grant("worker", *WORKER)
    assert result.get(timeout=60)["key"] == "late"
    app.close()


def test_without_the_right_to_publish_events_commands_go_on(guarded):
    guarded.grant("worker", WORKER[0], r"^(amq\.default|filestorage\.delay\.[0-9]+)$", WORKER[2])
    worker = guarded.start()
    assert guarded.call("store", "k", 1)["key"] == "k"
    wait_until(lambda: "'filestorage.events'" in worker.http("/readyz")[1], what="the missing right on /readyz")
    assert worker.ready()
    assert events_of(guarded.raw) == []


def test_without_the_right_to_delay_a_countdown_says_why(guarded):
    guarded.grant("worker", WORKER[0], r"^(amq\.default|filestorage\.events)$", WORKER[2])
    guarded.start()
    error = failure(guarded.send("store", "k", 1, _countdown=5))
    assert type(error).__name__ == "OperationalError"
    assert "until its eta" in str(error) and "filestorage.delay." in str(error)


# --- the generator ---------------------------------------------------------------------------------------------------


def generate(folder, *options):
    command = [str(GENERATOR), "--passwords", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_passwords(folder):
    for role in ROLES:
        (folder / role).write_text(f"a secret of {role}")


def test_one_salt_gives_one_file_without_passwords(tmp_path):
    write_passwords(tmp_path)
    first, second, other = (generate(tmp_path, "--queue-type", "quorum", *salt).stdout for salt in (["--salt", "x"], ["--salt", "x"], []))
    assert first == second != other
    assert "a secret of" not in first
    hashes = {user["password_hash"] for user in json.loads(first)["users"]}
    assert len(hashes) == 3


def test_dead_copies_outlast_every_look_on_rabbitmq_4(tmp_path):
    write_passwords(tmp_path)
    (policy,) = json.loads(generate(tmp_path, "--queue-type", "quorum").stdout)["policies"]
    assert policy["definition"] == {"delivery-limit": -1}
    for queue in (QUEUE, DEAD, METRICS):
        assert queue.replace(".", r"\.") in policy["pattern"]
    assert json.loads(generate(tmp_path, "--queue-type", "quorum", "--rabbitmq", "3").stdout)["policies"] == []
    assert json.loads(generate(tmp_path, "--queue-type", "classic").stdout)["policies"] == []


def test_a_missing_or_empty_password_is_one_clear_line(tmp_path):
    write_passwords(tmp_path)
    (tmp_path / "producer").write_text("\n")
    done = generate(tmp_path, "--queue-type", "classic")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"{tmp_path}/producer is empty; it has to hold the password of the user 'producer'\n"
    (tmp_path / "producer").unlink()
    done = generate(tmp_path, "--queue-type", "classic")
    assert done.stderr == f"{tmp_path}/producer: No such file or directory; it has to hold the password of the user 'producer'\n"


@pytest.mark.parametrize("wrong", [["--queue", DEAD], ["--queue", "filestorage.delay.100"], ["--queue", INVALIDATIONS], ["--max-priority", "256"]])
def test_wrong_options_of_the_generator_are_refused(tmp_path, wrong):
    write_passwords(tmp_path)
    assert generate(tmp_path, "--queue-type", "classic", *wrong).returncode == 2


def test_names_are_taken_literally(tmp_path):
    write_passwords(tmp_path)
    made = json.loads(generate(tmp_path, "--queue-type", "classic", "--queue", "a.b", "--queue", "c").stdout)
    read = {permission["user"]: permission["read"] for permission in made["permissions"]}
    assert read["worker"].startswith(r"^(a\.b|c|filestorage\.invalidations")
    assert [queue["name"] for queue in made["queues"]][:2] == ["a.b", "c"]
