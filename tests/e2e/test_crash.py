"""Workers killed, brokers killed, both under load: nothing confirmed is lost and nobody waits for ever."""

import random
import signal
import threading
import time

import pytest

from harness import DEAD, QUEUE, TIMEOUT, failure, wait_until


def collect(raw, reply, ids, timeout=60):
    """Gathers replies until every id has one; returns id → list of replies."""
    answers = {task_id: [] for task_id in ids}

    def all_there():
        for message in raw.drain(reply):
            answers[message.json["task_id"]].append(message.json)
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


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_broker_restarted_under_load_loses_nothing(site, how):
    if not site.broker.can_restart:
        pytest.skip("this broker may not be restarted")
    worker = site.spawn()
    site.app.close()
    # The producer waits for confirms, or what it lost itself would be blamed on the worker.
    site.app = site.client(broker_transport_options={"confirm_publish": True})
    results = [(f"broker/{n % 100}", n, site.send("store", f"broker/{n % 100}", n)) for n in range(600)]
    if how == "restart":
        site.broker.restart()
    else:
        site.broker.kill()
        time.sleep(1)
        site.broker.start()
    site.reconnect()
    for key, _, result in results:
        assert result.get(timeout=60)["key"] == key
    for n in range(500, 600):
        assert site.call("retrieve", f"broker/{n % 100}") == n
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


def test_a_drain_under_load_finishes_what_runs_and_gives_back_the_rest(site):
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
        worker.wait(10)
    wait_until(lambda: site.queues()[QUEUE] == (1, 0), what="the command back in its queue", step=0.2)
    site.start()
    assert result.get(timeout=TIMEOUT)["key"] == "slow"
    assert site.call("retrieve", "slow") == "value"


def test_a_stop_ends_within_its_grace(site):
    with site.held_writes("slow"):
        worker = site.start(SHUTDOWN_GRACE_SECONDS=2)
        result = running_store(site, worker)
        worker.signal(signal.SIGTERM)
        worker.wait(12)
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
