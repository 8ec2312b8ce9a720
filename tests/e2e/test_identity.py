"""A name that can be used again is no identity: ids used twice, whatever happens in between."""

import signal
import time

import pytest

from harness import DEAD, QUEUE, TIMEOUT, wait_until
from wire import Wire

ONE = {"CELERY_WORKER_CONCURRENCY": 1}
# Of a worker's two connections.
CONSUMING = 0
LOST = ["kill -9", "closed by the broker", "lost link", "closed channel"]


@pytest.fixture
def wire(site):
    wire = Wire(site.broker.host, site.broker.port)
    yield wire
    wire.close()


def start(site, wire, **env):
    port, there = f":{wire.port}/", f":{site.broker.port}/"
    url = site.env()["CELERY_BROKER_URL"]
    assert there in url
    return site.start(CELERY_BROKER_URL=url.replace(there, port), **ONE, **env)


def settled(site):
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what="everything acknowledged", step=0.1)


def end_session(site, wire, worker, how):
    """Ends the session of a worker; returns the worker that goes on."""
    match how:
        case "kill -9":
            worker.kill()
            return start(site, wire)
        case "closed by the broker":
            site.broker.ctl("close_all_connections", "--vhost", site.vhost, "test")
            site.reconnect()
        case "lost link":
            wire.cut()
        case "closed channel":
            close = "{'channel.close', 406, <<\"test\">>, 0, 0}"
            # Channels end while they are looked at.
            info = "Info <- [catch rabbit_channel:info(P)], is_list(Info)"
            one = f"{info}, proplists:get_value(vhost, Info) == V, proplists:get_value(consumer_count, Info) > 0"
            channels = f"V = <<\"{site.vhost}\">>, [rabbit_channel:send_command(P, {close}) || P <- rabbit_channel:list_local(), {one}]."
            site.broker.ctl("eval", channels)
    return worker


def with_prefetched(site, wire, worker, send, how):
    """Ends the session of a worker while what `send` sends is merely prefetched, behind a command that holds its only permit."""
    with site.held_writes("blocker"):
        blocker = site.send("store", "blocker", 1)
        wait_until(lambda: site.queues()[QUEUE][1] == 1, what="the blocker delivered", step=0.1)
        send()
        wait_until(lambda: site.queues()[QUEUE][1] == 2, what="the command prefetched", step=0.1)
        if how == "SIGTERM":
            worker.signal(signal.SIGTERM)
            wait_until(lambda: any("draining" in line.get("message", "") for line in worker.log_lines()), what="draining")
        else:
            worker = end_session(site, wire, worker, how)
            # The blocker runs again, alone or after it was waited for, once it is let go.
            time.sleep(0.5)
    if how == "SIGTERM":
        assert worker.wait() == 0
        worker = start(site, wire)
    assert blocker.get(timeout=TIMEOUT)["key"] == "blocker"
    return worker


@pytest.mark.parametrize("how", ["SIGTERM", *LOST])
def test_another_body_with_a_used_id_runs_after_a_lost_session(site, wire, how):
    """Of each kind the first is done and acknowledged, and the second is redelivered under its id."""
    worker = start(site, wire)
    reply = site.raw.reply_queue() if how != "closed by the broker" else "answers"
    if reply == "answers":
        site.raw.declare(reply)

    def send(*commands):
        for task, args, task_id in commands:
            site.raw.command(task, args, task_id=task_id, reply_to=reply)

    send(
        ("store", ["report", "MONDAY"], "nightly"),
        ("store", ["other", "of somebody else"], "retrieved"),
        ("store", ["gone", 1], "prepared"),
        ("delete", ["gone"], "deleted"),
    )
    first = [site.raw.get(reply).json["result"] for _ in range(4)]
    assert first[3] is True
    settled(site)

    def again():
        send(("store", ["report", "TUESDAY"], "nightly"))

    worker = with_prefetched(site, wire, worker, again, how)
    tuesday = site.raw.get(reply).json
    assert (tuesday["status"], tuesday["task_id"]) == ("SUCCESS", "nightly")
    assert tuesday["result"]["generation"] != first[0]["generation"]
    assert site.call("retrieve", "report") == "TUESDAY"
    assert site.call("stat", "report")["generation"] == tuesday["result"]["generation"]

    if how in ("SIGTERM", "kill -9"):
        settled(site)

        def more():
            send(("retrieve", ["report"], "retrieved"), ("store", ["kept", "value"], "deleted"))

        with site.held_writes("blocker"):
            site.send("store", "blocker", 2)
            wait_until(lambda: site.queues()[QUEUE][1] == 1, what="the blocker delivered", step=0.1)
            more()
            wait_until(lambda: site.queues()[QUEUE][1] == 3, what="both prefetched", step=0.1)
            worker.kill()
            start(site, wire)
        answers = {message["task_id"]: message["result"] for message in (site.raw.get(reply).json for _ in range(2))}
        assert answers["retrieved"] == "TUESDAY"
        assert answers["deleted"]["key"] == "kept"
        assert site.call("retrieve", "kept") == "value"
    assert site.raw.count(DEAD) == 0


@pytest.mark.parametrize("how", ["SIGTERM", *LOST])
def test_one_body_twice_runs_twice_unless_an_ack_is_in_doubt(site, wire, how):
    worker = start(site, wire)
    site.raw.declare("answers")

    def send():
        site.raw.command("store", ["report", "same"], task_id="nightly", reply_to="answers")

    send()
    first = site.raw.get("answers").json["result"]
    settled(site)
    worker = with_prefetched(site, wire, worker, send, how)
    second = site.raw.get("answers").json["result"]
    if how == "SIGTERM":
        assert second["generation"] != first["generation"], "the broker said that it has the acknowledgement"
    else:
        assert second == first, "the second of two equal ones that was outstanding: the window that remains"
    assert site.call("stat", "report")["generation"] == second["generation"]
    settled(site)
    # What was in doubt has come back: the next one is another, fresh and redelivered alike.
    send()
    third = site.raw.get("answers").json["result"]
    assert third["generation"] not in (first["generation"], second["generation"])
    assert worker.assert_alive()


def test_a_command_whose_ack_was_lost_is_answered_not_run(site, wire):
    """The answer is out and the link swallows the acknowledgement."""
    start(site, wire)
    site.raw.declare("answers")
    wire.deaf = {CONSUMING}
    site.raw.command("store", ["once", 1], task_id="once", reply_to="answers")
    first = site.raw.get("answers").json
    time.sleep(0.5)
    wire.cut()
    again = site.raw.get("answers").json
    assert again["result"] == first["result"]
    settled(site)
    assert site.call("stat", "once")["generation"] == first["result"]["generation"]


@pytest.mark.full_rights("the workers take from queues of their own")
def test_an_equal_command_that_a_living_sibling_answered_runs(site):
    """Its session holds, so there is no doubt, and what a killed sibling gave back is another command."""
    site.raw.declare("answers")
    site.raw.declare("other")

    def send(queue):
        site.raw.command("store", ["report", "same"], task_id="nightly", reply_to="answers", queue=queue)

    keeper = site.start(**ONE)
    send(QUEUE)
    first = site.raw.get("answers").json["result"]
    settled(site)
    with site.held_writes("blocker"):
        killed = site.spawn(name="killed", queues="other", **ONE)
        killed.wait_ready()
        site.raw.command("store", ["blocker", 1], queue="other")
        for _ in range(3):
            send("other")
        wait_until(lambda: site.queues()["other"] == (0, 4), what="all delivered", step=0.1)
        killed.kill()
    last = site.spawn(name="last", queues="other", **ONE)
    generations = {site.raw.get("answers").json["result"]["generation"] for _ in range(3)}
    assert len(generations) == 3 and first["generation"] not in generations
    assert keeper.assert_alive() and last.assert_alive()


def test_an_id_over_1_kib_is_refused_and_only_in_a_dead_copy(site):
    worker = site.start()
    reply = site.raw.reply_queue()
    # The longest that is taken, and what is beyond: a little, and as much as a header can bear.
    for length in (1_024, 1_025, 120_000):
        site.raw.command("delete", ["k"], task_id="i" * length, reply_to=reply, correlation_id=f"c{length}")
        answer = site.raw.get(reply)
        assert answer.properties["correlation_id"] == f"c{length}"
        if length == 1_024:
            assert answer.json["result"] is True and answer.json["task_id"] == "i" * length
        else:
            assert answer.json["result"]["exc_type"] == "DecodeError" and answer.json["task_id"] == f"c{length}"
            assert f"{length} bytes" in str(answer.json["result"]["exc_message"])
            dead = site.raw.get(DEAD)
            assert dead.headers["x-filestorage-dead-reason"] == "long-id"
    for _ in range(300):
        site.raw.command("delete", ["k"], task_id="i" * 120_000, correlation_id="")
    settled(site)
    assert site.raw.count(DEAD) == 300
    assert sum(file.stat().st_size for file in (site.storage / "journal").iterdir()) < 100_000
    assert worker.assert_alive()


def test_a_journal_full_of_unacknowledged_work_pauses_intake(site):
    """400 answers that their queue does not take fill the room; what was answered before has to go, and nothing is lost."""
    worker = site.start(JOURNAL_MAX_BYTES=1 << 20)
    site.raw.declare("answers")
    site.broker.ctl("set_policy", "--vhost", site.vhost, "full", "^answers$", '{"max-length": 1, "overflow": "reject-publish"}')
    site.raw.command("store", ["first", 0], reply_to="answers")
    wait_until(lambda: site.raw.count("answers") == 1, what="the answer that fills the queue")
    for number in range(400):
        site.raw.command("store", [f"many/{number}", number], reply_to="answers")

    def is_full():
        status, text = worker.http("/readyz")
        return status == 503 and "journal" in text and "journal_max_bytes" in text

    wait_until(is_full, what="the journal to be full on /readyz", step=0.02)
    journal = site.storage / "journal"
    assert sum(file.stat().st_size for file in journal.iterdir()) <= 1 << 20
    site.broker.ctl("clear_policy", "--vhost", site.vhost, "full")
    settled(site)
    wait_until(lambda: worker.http("/readyz")[0] == 200, what="a worker that is ready again")
    assert sum(file.stat().st_size for file in journal.iterdir()) <= 1 << 20
    assert len(site.call("list_keys", "many/")) == 400


def test_a_thousand_commands_with_one_id_survive_three_kills(site):
    worker = site.start()
    site.raw.declare("answers")
    for number in range(1_000):
        site.raw.command("store", [f"many/{number}", number], task_id="nightly", reply_to="answers")
    for _ in range(3):
        before = site.raw.count("answers")
        wait_until(lambda before=before: site.raw.count("answers") > before or site.raw.count(QUEUE) == 0, what="progress", step=0)
        worker.kill()
        worker = site.spawn()
    settled(site)
    answers = [message.json for message in site.raw.drain("answers")]
    assert {answer["status"] for answer in answers} == {"SUCCESS"}
    receipts = {}
    for answer in answers:
        receipt = receipts.setdefault(answer["result"]["key"], answer["result"])
        assert receipt == answer["result"], "answered twice, told the same"
    assert len(receipts) == 1_000
    values = [site.send("retrieve", f"many/{number}") for number in range(1_000)]
    assert [value.get(timeout=TIMEOUT) for value in values] == list(range(1_000))
    assert site.raw.count(DEAD) == 0
