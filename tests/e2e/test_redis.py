"""Results in a Redis: an unmodified Celery application with `backend="redis://…"` finds there what a Python worker would keep."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from conftest import full_rights
from harness import QUEUE, TIMEOUT, failure, wait_until
from redis_server import PREFIX, RedisServer, RedisSite


@pytest.fixture(scope="module")
def shared(request, broker, server, tmp_path_factory):
    """A site with a running worker that the tests share which do nothing to the Redis."""
    site = RedisSite(broker, tmp_path_factory.mktemp("shared"), server, full_rights(request))
    try:
        worker = site.start()
        yield site
        worker.assert_alive()
    finally:
        site.close()


@pytest.fixture
def site(request, broker, server, tmp_path):
    site = RedisSite(broker, tmp_path, server, full_rights(request))
    yield site
    site.close()


@pytest.mark.parametrize("value", ["text", b"bytes \xff", {"a": [1, b"x", "é"]}, None, 2**70, [1.5, float("inf")]], ids=repr)
def test_a_value_comes_back_by_the_redis(shared, key, value):
    shared.call("store", key, value)
    assert shared.call("retrieve", key) == value


def test_many_large_results_at_once(shared, key):
    values = [str(n) * (3 << 20) for n in range(8)]
    for n, value in enumerate(values):
        shared.call("store", f"{key}/{n}", value)
    waiting = [shared.send("retrieve", f"{key}/{n}") for n in range(8)]
    assert [result.get(timeout=60) for result in waiting] == values


def test_an_exception_is_raised_as_itself(shared):
    result = shared.send("retrieve", "../bad")
    assert type(failure(result)) is ValueError
    assert shared.server.meta(result.id)["status"] == "FAILURE"
    assert type(failure(shared.send("verify", "nothing"))) is FileNotFoundError


def test_a_chain_and_a_group_are_waited_for(shared, key):
    from celery import chain, group

    shared.call("store", key + "/1", key + "/2")
    shared.call("store", key + "/2", "end")
    assert chain(shared.sig("retrieve", key + "/1"), shared.sig("retrieve")).apply_async().get(timeout=TIMEOUT) == "end"
    many = group(shared.sig("store", f"{key}/{n}", n) for n in range(30)).apply_async()
    assert [receipt["key"] for receipt in many.get(timeout=TIMEOUT)] == [f"{key}/{n}" for n in range(30)]


def test_a_failing_chain_fails_at_its_last_step(shared, key):
    from celery import chain

    result = chain(shared.sig("retrieve", "../bad"), shared.sig("store", key, "never", immutable=True)).apply_async()
    assert type(failure(result)) is ValueError
    assert type(failure(result.parent)) is ValueError


def test_whoever_waits_is_told_at_once(shared, key):
    shared.call("store", key, "x")
    begun = time.monotonic()
    for _ in range(20):
        assert shared.call("retrieve", key) == "x"
    assert time.monotonic() - begun < 10, "nobody polls"
    subscriber = shared.server.client.pubsub()
    result = None
    try:
        subscriber.psubscribe(PREFIX + "*")
        result = shared.send("exists", key)
        told = wait_until(
            lambda: next(
                (m for m in iter(lambda: subscriber.get_message(timeout=0.1), None) if m.get("channel") == (PREFIX + result.id).encode()),
                None,
            ),
            what="the notice",
        )
        assert told["data"].decode() == shared.server.text(result.id)
    finally:
        subscriber.close()


def test_an_ignored_result_costs_nothing_there(shared, key):
    ignored = shared.send("store", key, 1, _ignore_result=True)
    wait_until(lambda: shared.call("exists", key), what="the ignored command")
    assert shared.server.text(ignored.id) is None


def test_nothing_goes_to_the_reply_queue(site, key):
    site.start()
    site.raw.channel.queue_declare("replies", durable=False, exclusive=False)
    result = site.send("exists", key, _reply_to="replies")
    assert result.get(timeout=TIMEOUT) is False
    assert site.raw.channel.basic_get("replies") is None


def test_results_expire_as_the_setting_says(site, key):
    worker = site.start(CELERY_RESULT_EXPIRES="120")
    result = site.send("exists", key)
    result.get(timeout=TIMEOUT)
    assert 100 < site.server.client.ttl(PREFIX + result.id) <= 120
    worker.stop()
    site.start(CELERY_RESULT_EXPIRES="0")
    result = site.send("exists", key)
    result.get(timeout=TIMEOUT)
    assert site.server.client.ttl(PREFIX + result.id) == -1


def test_a_success_is_never_replaced(site, key):
    worker = site.start()
    kept = {"status": "SUCCESS", "result": "earlier", "traceback": None, "children": [], "task_id": "again"}
    site.server.client.set(PREFIX + "again", json.dumps(kept))
    assert site.send("store", key, 1, _task_id="again").get(timeout=TIMEOUT) == "earlier"
    wait_until(lambda: site.queues().get(QUEUE) == (0, 0), what="the acknowledgement")
    assert site.server.meta("again") == kept
    site.server.client.set(PREFIX + "again", json.dumps({**kept, "status": "STARTED"}))
    assert site.app.AsyncResult("again").state == "STARTED"
    site.send("exists", key, _task_id="again")
    wait_until(lambda: site.server.meta("again")["status"] == "SUCCESS", what="the answer")
    worker.assert_alive()


def test_a_start_is_told(site, key):
    site.start(CELERY_TASK_TRACK_STARTED="true")
    with site.held_writes(key):
        result = site.send("store", key, 1)
        started = wait_until(lambda: site.server.meta(result.id), what="STARTED")
        assert started["status"] == "STARTED" and started["date_done"] is None
        assert set(started["result"]) == {"pid", "hostname"}
    result.get(timeout=TIMEOUT)


PYTHON_WORKER = """
import sys
from celery import Celery
app = Celery("peer", broker=sys.argv[1], backend=sys.argv[2])
app.conf.update(task_default_queue=sys.argv[3], result_extended=sys.argv[4] == "1", worker_enable_remote_control=False,
                worker_hijack_root_logger=False)

@app.task(name="filestorage.exists")
def exists(key):
    return False

@app.task(name="filestorage.retrieve")
def retrieve(key):
    raise ValueError("é: no such key")

@app.task(name="peer.list")
def peer_list(*args):
    return list(args)

@app.task(name="peer.fail")
def peer_fail(*args):
    raise KeyError("peer")

app.worker_main(["worker", "-P", "solo", "-l", "warning", "-n", "peer@%h", "--without-gossip", "--without-mingle",
                 "--without-heartbeat"])
"""


@pytest.fixture
def peer():
    """Starts Python workers: peer(site, queue, extended)."""
    started = []

    def start(site, queue, extended=False):
        script = site.folder / "peer.py"
        script.write_text(PYTHON_WORKER)
        log = open(site.folder / "peer.log", "ab")
        command = [sys.executable, str(script), site.broker.url(site.vhost), site.server.url, queue, "1" if extended else "0"]
        started.append((subprocess.Popen(command, stdout=log, stderr=log, cwd=site.folder), log))

    yield start
    for process, log in started:
        process.kill()
        process.wait()
        log.close()


@pytest.mark.full_rights("the Python worker declares what it likes")
@pytest.mark.parametrize("extended", [False, True], ids=["plain", "extended"])
def test_the_text_is_that_of_a_python_worker(site, peer, key, extended):
    site.start(CELERY_RESULT_EXTENDED=str(extended).lower())
    peer(site, "peer", extended)
    options = {"_headers": {"stamped_headers": ["s"], "stamps": {"s": "é"}}} if extended else {}

    def kept(queue, task, args):
        result = site.send(task, *args, _queue=queue, _group_id="g-1", _parent_id="p-1", **options)
        try:
            result.get(timeout=60)
        except ValueError:
            pass
        return site.server.text(result.id).replace(result.id, "ID")

    for task, args in [("exists", [key + " é"]), ("retrieve", ["../bad"])]:
        ours, theirs = kept(QUEUE, task, args), kept("peer", task, args)
        for pattern, instead in [
            (r'"date_done": "[^"]*"', '"date_done": "T"'),
            (r'"traceback": "(?:[^"\\]|\\.)*"', '"traceback": "TB"'),
            (r'"exc_message": \[.*?\], "exc_module"', '"exc_message": [], "exc_module"'),
            (r'"worker": "(?:e2e|peer)@', '"worker": "'),
            (r'"queue": "(?:filestorage|peer)"', '"queue": "Q"'),
        ]:
            ours, theirs = re.sub(pattern, instead, ours), re.sub(pattern, instead, theirs)
        assert ours == theirs


def test_a_stopped_redis_loses_nothing_and_is_named(own, key):
    worker = own.start()
    assert not own.reason(worker)
    own.server.pause()
    sent = [own.post("store", f"{key}/{n}", n, ignore_result=n % 2 == 1) for n in range(40)]
    wait_until(lambda: len(own.object_files()) == 40, what="the commands run, those whose result nobody wants among them")
    assert "did not answer" in own.wait_degraded(worker)
    assert worker.ready(), "commands run"
    ready, unsettled = own.queues()[QUEUE]
    parked = sum(sum(counts) for name, counts in own.queues().items() if name.startswith("filestorage.parked"))
    assert ready + unsettled + parked >= 20, "nothing is acknowledged that is neither kept nor parked"
    own.server.resume()
    for n, result in enumerate(sent):
        if n % 2 == 0:
            assert result.get(timeout=60)["key"] == f"{key}/{n}"
    own.wait_mended(worker)
    wait_until(lambda: own.queues()[QUEUE] == (0, 0), 60, "all is acknowledged")
    assert not [line for line in worker.log_lines() if "no session" in str(line.get("message"))], "no session was lost"


def test_a_killed_redis_in_the_middle_of_load(own, key):
    worker = own.start()
    sent = [own.post("store", f"{key}/{n}", n) for n in range(300)]
    own.server.kill()
    time.sleep(3)
    sent += [own.post("exists", f"{key}/{n}") for n in range(50)]
    own.server.start()
    # redis-py's own subscription was lost with the server: the results are looked for.
    for result in sent:
        wait_until(lambda: (own.server.meta(result.id) or {}).get("status") == "SUCCESS", 90, lambda: worker.log()[-3000:])
    wait_until(lambda: own.queues()[QUEUE] == (0, 0), 60, "all is acknowledged")
    own.wait_mended(worker)


def test_no_command_begins_without_a_redis(own, key):
    own.server.kill()
    worker = own.spawn()
    wait_until(lambda: "no result can be kept" in worker.http("/readyz")[1], what=lambda: worker.log())
    assert not worker.ready()
    result = own.post("store", key, 1)
    time.sleep(2)
    assert not own.object_files()
    own.server.start()
    assert result.get(timeout=60)["key"] == key
    worker.wait_ready()


def test_a_wrong_password_ends_the_start_and_is_never_shown(request, broker, tmp_path):
    server = RedisServer(tmp_path / "redis", "--requirepass right")
    server.client.close()
    site = RedisSite(broker, tmp_path, server, full_rights(request))
    try:
        wrong = server.url.replace("redis://", "redis://:hunter2@")
        worker = site.spawn(CELERY_RESULT_BACKEND=wrong)
        assert worker.wait(60) == 78
        assert "refuses the login" in worker.log() and "hunter2" not in worker.log()
        # By a file, as every other secret.
        secret = tmp_path / "secret"
        secret.write_text(server.url.replace("redis://", "redis://:right@") + "\n")
        env = site.env(CELERY_RESULT_BACKEND_FILE=str(secret))
        del env["CELERY_RESULT_BACKEND"]
        site.env = lambda **extra: {**env, **extra}
        worker = site.start()
        assert worker.stop() == 0
    finally:
        site.close()
        server.close()


def test_results_go_over_tls_and_certificates_are_checked(request, broker, tmp_path):
    import socket

    from certificates import Authority

    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    certificate, private = authority.sign("redis", hosts=["localhost", "127.0.0.1"])
    own_certificate, own_key = authority.sign("worker")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tls = f"--tls-port {port} --tls-cert-file {certificate} --tls-key-file {private} --tls-ca-cert-file {authority.file}"
    server = RedisServer(tmp_path / "redis", tls)
    site = RedisSite(broker, tmp_path, server, full_rights(request))
    try:
        url = f"rediss://localhost:{port}/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={{}}&ssl_certfile={own_certificate}&ssl_keyfile={own_key}"
        worker = site.start(CELERY_RESULT_BACKEND=url.format(authority.file))
        assert site.call("exists", "key") is False
        assert worker.stop() == 0
        distrustful = site.spawn(CELERY_RESULT_BACKEND=url.format(other.file))
        wait_until(lambda: "certificate" in distrustful.http("/readyz")[1], what=lambda: distrustful.log())
        assert not distrustful.ready()
    finally:
        site.close()
        server.close()


def test_the_doctor_names_cause_and_remedy(own):
    from harness import BINARY

    def doctor(**env):
        done = subprocess.run([str(BINARY), "doctor"], env=own.env(**env), capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    code, text = doctor()
    assert "this user may answer commands" in text, text
    own.server.kill()
    code, text = doctor()
    assert code == 69 and "no result can be kept" in text and "start it" in text, text
    code, text = doctor(CELERY_RESULT_BACKEND="redis://:hunter2@127.0.0.1:1/x")
    assert code == 78 and "hunter2" not in text and "number of a database" in text, text
    own.server.start()


def test_a_full_redis_keeps_the_answers_waiting(own, key):
    worker = own.start()
    own.server.client.config_set("maxmemory", "1")
    result = own.post("store", key, 1)
    assert "maxmemory" in own.wait_degraded(worker)
    own.server.client.config_set("maxmemory", "0")
    assert result.get(timeout=60)["key"] == key
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
