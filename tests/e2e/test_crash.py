"""Workers killed, brokers killed, both under load: nothing confirmed is lost and nobody waits for ever."""

import json
import random
import shutil
import signal
import threading
import time
import uuid

import amqp
import pytest

from harness import DEAD, QUEUE, TIMEOUT, Raw, failure, wait_until


def collect(raw, reply, ids, timeout=60):
    """Gathers replies until every id has one; returns id → list of replies."""
    answers = {task_id: [] for task_id in ids}

    def all_there():
        for message in raw.drain(reply):
            answers.setdefault(message.json["task_id"], []).append(message.json)
        return all(answers.values())

    wait_until(all_there, timeout, "an answer to every command", step=0.05)
    return answers


def check_answered_alike(answers):
    """Whoever is answered twice is told the same twice: the command did not run again."""
    for task_id, replies in answers.items():
        assert {reply["status"] for reply in replies} == {"SUCCESS"}, replies
        assert all(reply["result"] == replies[0]["result"] for reply in replies), (task_id, replies)


class Killer(threading.Thread):
    """Kills the worker again and again and starts the next one, until told to stop."""

    def __init__(self, site, times):
        super().__init__(daemon=True)
        self.site, self.times, self.random = site, times, random.Random(11)

    def run(self):
        for _ in range(self.times):
            time.sleep(self.random.uniform(0.15, 0.45))
            self.site.workers[-1].kill()
            # Giving back what a dead connection held is the broker's work; a moment lets it keep the order.
            time.sleep(0.1)
            self.site.spawn()


def test_kill_9_under_load_loses_nothing(site):
    """1,000 commands on 200 keys, six kills: the last value sent is the one that stays."""
    site.start()
    killer = Killer(site, 6)
    killer.start()
    last, results = {}, []
    for n in range(1_000):
        key = f"load/{n % 200}"
        value = {"seq": n, "pad": "x" * (n * 37 % 3_000)}
        results.append((key, n, site.send("store", key, value)))
        last[key] = value
        if n % 10 == 0:
            time.sleep(0.02)
    receipts = {}
    for key, n, result in results:
        receipt = result.get(timeout=60)
        assert receipt["key"] == key
        receipts[key] = receipt
    killer.join(60)
    assert not killer.is_alive()
    worker = site.workers[-1].wait_ready()
    for key, value in last.items():
        assert site.call("retrieve", key) == value
        assert site.call("stat", key)["generation"] == receipts[key]["generation"]
    assert site.raw.count(DEAD) == 0
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what="an empty command queue", step=0.3)
    assert len(site.call("list_keys", "load/")) == 200
    assert not leftovers(site)
    worker.assert_alive()


def leftovers(site):
    return [path for path in site.object_files() if "#tmp" in path.parts]


def test_a_redelivered_command_is_answered_from_the_journal(site):
    """Commands answered but not yet acknowledged when the worker died are told the same again, not run again."""
    worker = site.start()
    reply = site.raw.reply_queue()
    ids = [site.raw.command("store", [f"again/{n}", n], reply_to=reply) for n in range(600)]
    for _ in range(4):
        before = site.raw.count(reply)
        wait_until(lambda before=before: site.raw.count(reply) > before or site.raw.count(QUEUE) == 0, what="progress", step=0)
        worker.kill()
        time.sleep(0.1)
        worker = site.spawn()
    answers = collect(site.raw, reply, ids)
    check_answered_alike(answers)
    for task_id, n in zip(ids, range(600), strict=True):
        assert site.call("stat", f"again/{n}")["generation"] == answers[task_id][0]["result"]["generation"]
    assert site.raw.count(DEAD) == 0


def test_the_same_id_sent_afresh_runs_again(site):
    site.start()
    reply = site.raw.reply_queue()
    for value in (1, 2):
        site.raw.command("store", ["periodic", value], task_id="every-night", reply_to=reply)
        assert site.raw.get(reply).json["status"] == "SUCCESS"
        assert site.call("retrieve", "periodic") == value


def test_a_redelivered_finished_write_is_answered_not_run(site):
    worker = site.start()
    reply = site.raw.reply_queue()
    site.raw.command("store", ["once", 1], task_id="A", reply_to=reply)
    receipt = site.raw.get(reply).json
    assert receipt["status"] == "SUCCESS"
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what="its acknowledgement", step=0.1)
    worker.kill()
    wait_until(lambda: site.raw.channel.queue_declare(QUEUE, passive=True).consumer_count == 0, what="its consumer's end", step=0.1)

    # Whether the broker has that acknowledgement is in doubt. Taken and given back, an equal message counts as redelivered.
    site.raw.command("store", ["once", 1], task_id="A", reply_to=reply)
    for redelivered in (False, True):
        taken = Raw(site.broker, site.vhost)
        message = taken.channel.basic_get(QUEUE)
        assert message.delivery_info["redelivered"] is redelivered
        taken.close()
        wait_until(lambda: site.raw.count(QUEUE) == 1, what="the message back in its queue")
    worker = site.start()
    again = site.raw.get(reply).json
    assert (again["status"], again["task_id"]) == ("SUCCESS", "A")
    assert again["result"] == receipt["result"]
    assert site.call("retrieve", "once") == 1
    assert site.call("stat", "once")["generation"] == receipt["result"]["generation"]
    # Not by a look at the object, which bears the same identity.
    assert [line["task_id"] for line in worker.log_lines() if "from the journal" in line["message"]] == ["A"]

    site.raw.command("store", ["once", 3], task_id="A", reply_to=reply)
    fresh = site.raw.get(reply).json
    assert fresh["status"] == "SUCCESS"
    assert fresh["result"]["generation"] != receipt["result"]["generation"]
    assert site.call("retrieve", "once") == 3
    assert site.raw.drain(reply) == site.raw.drain(DEAD) == []


class Sender(threading.Thread):
    """Stores ever newer values on 100 keys, one confirmed publish after the other; rides out what the broker does."""

    def __init__(self, site, reply):
        super().__init__(daemon=True)
        self.site, self.reply = site, reply
        self.confirmed, self.last, self.failures = [], {}, 0
        self.enough = threading.Event()

    def run(self):
        raw, number = None, 0
        while not self.enough.is_set():
            key, task_id = f"broker/{number % 100}", str(uuid.uuid4())
            try:
                raw = raw or Raw(self.site.broker, self.site.vhost)
                raw.command("store", [key, number], task_id=task_id, reply_to=self.reply, delivery_mode=2)
            except (OSError, amqp.AMQPError):
                # Perhaps it was taken, perhaps not: the value is sent again under an id of its own.
                self.failures += 1
                if raw is not None:
                    raw.close()
                raw = None
                time.sleep(0.1)
                continue
            self.confirmed.append(task_id)
            self.last[key] = number
            number += 1
            time.sleep(0.002)
        if raw is not None:
            raw.close()


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_broker_restarted_under_load_loses_nothing(site, how):
    if not site.broker.can_restart:
        pytest.skip("this broker may not be restarted")
    worker = site.start()
    # A queue that outlives the broker: what is missing in the end was lost by the worker.
    reply = "answers"
    site.raw.declare(reply)
    sender = Sender(site, reply)
    try:
        # Commands on one of the keys cannot end before the broker is gone.
        with site.held_writes("broker/0"):
            sender.start()
            wait_until(lambda: site.raw.count(reply) > 100 and "broker/99" in sender.last, what="load")
            before = len(sender.confirmed)
            assert site.raw.count(reply) < before, "nothing was unanswered when the broker went down"
            assert sender.failures == 0
            if how == "restart":
                site.broker.restart()
            else:
                site.broker.kill()
                time.sleep(1)
                site.broker.start()
        site.reconnect()
        after = len(sender.confirmed)
        wait_until(lambda: len(sender.confirmed) > after + 200, 30, "the load to go on")
    finally:
        sender.enough.set()
        sender.join(30)
    assert not sender.is_alive()
    assert sender.failures > 0, "nothing was sent while the broker was away"
    answers = collect(site.raw, reply, sender.confirmed)
    check_answered_alike(answers)
    assert len(sender.last) == 100
    for key, number in sender.last.items():
        assert site.call("retrieve", key) == number
    assert worker.assert_alive()
    worker.wait_ready()
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what="an empty command queue", step=0.3)
    assert site.raw.count(DEAD) == 0


def test_a_worker_started_before_its_broker_waits_for_it(site):
    if not site.broker.can_restart:
        pytest.skip("this broker may not be restarted")
    site.broker.kill()
    try:
        worker = site.spawn()
        wait_until(lambda: worker.assert_alive() and worker.http("/readyz")[0] == 503, what="a reason on /readyz")
        assert worker.http("/livez")[0] == 200
        time.sleep(2)
        worker.assert_alive()
    finally:
        site.broker.start()
    site.reconnect()
    worker.wait_ready()
    assert site.call("store", "early", 1)["key"] == "early"


def test_readyz_says_why_while_the_broker_is_away(site):
    if not site.broker.can_restart:
        pytest.skip("this broker may not be restarted")
    worker = site.start()
    site.broker.kill()
    try:
        status, text = wait_until(
            lambda: (lambda answer: answer if answer[0] == 503 else None)(worker.http("/readyz")), what="503 on /readyz"
        )
        assert "broker" in text and "reason" in text
    finally:
        site.broker.start()
    worker.wait_ready()


def test_a_command_that_kills_its_worker_is_given_up(site):
    """Only what ran counts: the neighbour that was merely prefetched is answered as if nothing had happened."""
    env = {"MAX_CRASHES": 3, "CELERY_WORKER_CONCURRENCY": 1}
    with site.held_writes("poison"):
        worker = site.start(**env)
        poison = site.send("store", "poison", "x" * 1_000)
        innocent = site.send("store", "innocent", 1)
        for _ in range(3):
            wait_until(lambda: site.queues().get(QUEUE, (0, 0))[1] >= 1, what="the command to be delivered", step=0.1)
            # Delivered is not running yet; the journal is written as soon as it is.
            time.sleep(1)
            worker.kill()
            worker = site.start(**env)
        error = failure(poison)
        assert type(error).__name__ == "WorkerLostError"
    assert innocent.get(timeout=TIMEOUT)["key"] == "innocent"
    dead = site.raw.get(DEAD)
    assert dead.headers["id"] == poison.id
    assert site.raw.drain(DEAD) == []
    assert site.call("exists", "poison") is False
    assert site.call("store", "poison", "fresh commands are welcome")["key"] == "poison"
    worker.assert_alive()


def test_two_workers_on_one_folder_share_the_work(site):
    for name in ("one", "two"):
        site.spawn(name=name)
    for worker in site.workers:
        worker.wait_ready()
    reply = site.raw.reply_queue()
    ids = [site.raw.command("store", [f"both/{n}", n], reply_to=reply) for n in range(600)]
    wait_until(lambda: site.raw.count(reply) > 50, what="progress", step=0)
    site.workers[0].kill()
    answers = collect(site.raw, reply, ids)
    check_answered_alike(answers)
    for task_id, n in zip(ids, range(600), strict=True):
        assert site.call("retrieve", f"both/{n}") == n
        assert site.call("stat", f"both/{n}")["generation"] == answers[task_id][0]["result"]["generation"]
    assert site.raw.count(DEAD) == 0


class Counter(threading.Thread):
    """Adds its name to the list under one of a few keys, as often as told: read, then write if nobody wrote since."""

    def __init__(self, site, keys, times):
        super().__init__(daemon=True)
        self.site, self.keys, self.times = site, keys, times
        self.confirmed, self.refused, self.fault = {key: [] for key in keys}, [], None

    def run(self):
        raw = Raw(self.site.broker, self.site.vhost)
        reply = raw.reply_queue()

        def call(task, *args, **kwargs):
            task_id = raw.command(task, list(args), kwargs, reply_to=reply, delivery_mode=2)
            while True:
                answer = raw.get(reply, timeout=60).json
                # A redelivered read may be answered twice, as may a write whose answer was known already.
                if answer["task_id"] == task_id:
                    return answer

        try:
            for n in range(self.times):
                key, done = self.keys[n % len(self.keys)], False
                while not done:
                    done = self.add(call, key)
        except BaseException as fault:  # told to the test, which cannot see into a thread
            self.fault = fault
        finally:
            raw.close()

    def add(self, call, key):
        stat = call("stat", key)["result"]
        # Read after the generation: when somebody writes in between, the write below is refused.
        value = call("retrieve", key)["result"] or []
        name = str(uuid.uuid4())
        condition = {"if_absent": True} if stat is None else {"if_generation": stat["generation"]}
        began = time.monotonic()
        answer = call("store", key, [*value, name], **condition)
        if answer["status"] == "SUCCESS":
            self.confirmed[key].append(name)
            return True
        assert answer["result"]["exc_type"] == "PreconditionFailed", answer
        self.refused.append((name, began, time.monotonic()))
        return False


def test_two_workers_and_few_keys_break_no_chain_of_conditions(site):
    """Every confirmed step is in the final value, once; a kill -9 of one worker and its return change nothing."""
    workers = [site.spawn(name=name) for name in ("one", "two")]
    for worker in workers:
        worker.wait_ready()
    keys = ["few/a", "few/b", "few/c"]
    counters = [Counter(site, keys, 60) for _ in range(4)]

    def steps():
        return sum(len(names) for counter in counters for names in counter.confirmed.values())

    for counter in counters:
        counter.start()
    kills = []
    for goal in (40, 110, 180):
        wait_until(lambda goal=goal: steps() >= goal or any(c.fault for c in counters), 60, "progress", step=0)
        kills.append(time.monotonic())
        workers[len(kills) % 2].kill()
        workers[len(kills) % 2] = site.spawn(name=f"again-{len(kills)}")
        workers[len(kills) % 2].wait_ready()
    for counter in counters:
        counter.join(90)
        assert not counter.is_alive(), "somebody waits for ever"
        assert counter.fault is None, repr(counter.fault)
    assert steps() == 4 * 60
    refused = {name: span for counter in counters for name, *span in counter.refused}
    assert refused, "nobody met anybody: the keys were not contended"
    for key in keys:
        final = site.call("retrieve", key)
        confirmed = [name for counter in counters for name in counter.confirmed[key]]
        assert len(final) == len(set(final)), "a step was taken twice"
        assert set(confirmed) <= set(final), "a confirmed step is lost"
        # A kill between the write and the note of it leaves its redelivery a look at the object only; when the next step
        # has been taken by then, it is refused although it counts. Nothing else may be there that was not confirmed.
        for name in set(final) - set(confirmed):
            began, ended = refused[name]
            assert any(began <= killed <= ended for killed in kills), "a refused step was taken"
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what="an empty command queue", step=0.3)
    assert site.raw.count(DEAD) == 0
    assert not leftovers(site)


def test_a_drain_under_load_finishes_or_gives_back_commands(site):
    reply = site.raw.reply_queue()
    site.raw.declare(QUEUE)
    ids = [site.raw.command("store", [f"drain/{n}", "x" * 500], reply_to=reply) for n in range(2_000)]
    worker = site.spawn()
    for _ in range(3):
        before = site.raw.count(reply)
        wait_until(lambda before=before: site.raw.count(reply) > before + 50 or site.raw.count(QUEUE) == 0, what="progress", step=0)
        assert worker.stop(timeout=30) == 0
        counts = site.queues()
        assert counts[QUEUE][1] == 0
        # Everything is either answered or back in the queue.
        assert counts[QUEUE][0] + counts[reply][0] >= 2_000
        worker = site.spawn()
    answers = collect(site.raw, reply, ids)
    assert {len(replies) for replies in answers.values()} == {1}
    check_answered_alike(answers)
    assert site.raw.count(DEAD) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_idle_worker_stops_at_once(site, number):
    worker = site.start()
    started = time.monotonic()
    worker.signal(number)
    assert worker.wait() == 0
    assert time.monotonic() - started < 10


def running_store(site, worker):
    """Sends a store that cannot end while its key's lock is held, and waits until it was delivered."""
    result = site.send("store", "slow", "value")
    wait_until(lambda: site.queues().get(QUEUE, (0, 0))[1] == 1, what="the command to be delivered", step=0.1)
    worker.assert_alive()
    return result


def test_a_warm_stop_waits_for_what_runs(site):
    with site.held_writes("slow"):
        worker = site.start()
        result = running_store(site, worker)
        worker.signal(signal.SIGTERM)
        time.sleep(1)
        worker.assert_alive()
    assert worker.wait() == 0
    assert result.get(timeout=TIMEOUT)["key"] == "slow"
    assert site.queues()[QUEUE] == (0, 0)


@pytest.mark.parametrize("signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGQUIT,)], ids=["second SIGTERM", "SIGQUIT"])
def test_a_cold_stop_gives_everything_back(site, signals):
    with site.held_writes("slow"):
        worker = site.start()
        result = running_store(site, worker)
        for number in signals:
            worker.signal(number)
            time.sleep(0.5)
        assert worker.wait(10) == 75, "work was left behind"
    wait_until(lambda: site.queues()[QUEUE] == (1, 0), what="the command back in its queue", step=0.2)
    site.start()
    assert result.get(timeout=TIMEOUT)["key"] == "slow"
    assert site.call("retrieve", "slow") == "value"


def journal(worker):
    return json.loads(worker.http("/readyz")[1])["components"].get("journal", {})


def test_a_deleted_journal_is_made_anew_and_said(site):
    """While nothing happens, by its lock alone, and under a command that runs: its crash still counts."""
    folder = site.storage / "journal"
    worker = site.start(MAX_CRASHES=1)
    for remove in (lambda: shutil.rmtree(folder), lambda: next(folder.glob("*.lock")).unlink()):
        told = worker.log().count("made anew")
        remove()
        wait_until(lambda: worker.log().count("made anew") > told, what=worker.log)
        assert "deleted" in wait_until(lambda: journal(worker).get("reason"))
        assert worker.ready() and list(folder.glob("*.lock")) and list(folder.glob("*.log"))
        assert site.call("store", "k", 1)["key"] == "k"
    with site.held_writes("slow"):
        result = running_store(site, worker)
        folder.rename(site.folder / "moved away")
        wait_until(lambda: list(folder.glob("*.log")), what=worker.log)
        assert site.call("exists", "k") is True
        worker.kill()
        site.start(MAX_CRASHES=1)
        error = failure(result)
    assert type(error).__name__ == "WorkerLostError", error


def test_a_journal_that_cannot_be_rewritten_is_reported(site):
    worker = site.start()
    folder = site.storage / "journal"
    shutil.rmtree(folder)
    folder.write_text("in the way")
    wait_until(lambda: "cannot be written" in journal(worker).get("reason", ""), what=worker.log)
    assert site.call("store", "k", 1)["key"] == "k"
    folder.unlink()
    wait_until(lambda: "made anew" in journal(worker).get("reason", ""), what=worker.log)
    assert list(folder.glob("*.lock"))


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM), (signal.SIGQUIT,)], ids=str)
def test_a_stop_that_leaves_nothing_behind_ends_with_0(site, signals):
    worker = site.start()
    site.call("store", "k", 1)
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what="the acknowledgement", step=0.2)
    for number in signals:
        worker.signal(number)
    assert worker.wait(10) == 0


def test_a_stop_ends_within_its_grace(site):
    with site.held_writes("slow"):
        worker = site.start(SHUTDOWN_GRACE_SECONDS=2)
        result = running_store(site, worker)
        worker.signal(signal.SIGTERM)
        assert worker.wait(12) == 75, "work was left behind"
    site.start()
    assert result.get(timeout=TIMEOUT)["key"] == "slow"


def test_a_blocked_connection_is_waited_out(site):
    """The broker's memory alarm: nothing is rebuilt, nothing lost, `/readyz` says `blocked`."""
    if not site.broker.can_restart:
        pytest.skip("this broker may not be throttled")
    worker = site.start()
    try:
        with site.held_writes("slow"):
            result = running_store(site, worker)
            site.broker.ctl("set_vm_memory_high_watermark", "0.00001")
        # Its answer is the publish that the broker does not take now.
        wait_until(lambda: "blocked" in worker.http("/readyz")[1], what="`blocked` on /readyz")
        assert worker.http("/readyz")[0] == 503
        assert worker.http("/livez")[0] == 200
    finally:
        site.broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert result.get(timeout=TIMEOUT)["key"] == "slow"
    worker.wait_ready()
    assert site.call("retrieve", "slow") == "value"
    assert site.queues()[QUEUE] == (0, 0)
