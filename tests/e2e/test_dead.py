"""`filestorage dead`: what could not be run is looked at, replayed and dropped, and none of it is lost or out of order."""

import json
import os
import pty
import signal
import subprocess
import time

import pytest

from harness import BINARY, DEAD, QUEUE, TIMEOUT, Site, wait_until

# Only an administrator reads the queue, unless the worker's user is given the right.
pytestmark = pytest.mark.full_rights("only an administrator takes from filestorage.dead")
NOPE = "filestorage.nope"
PATIENCE = 60


def run(site, *args, **env):
    """Runs `filestorage dead …` and returns exit code, answer and standard error."""
    done = subprocess.run(
        [str(BINARY), "dead", *args, "--json"],
        env=site.env(**env),
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def dead(site, *args, **env):
    code, answer, stderr = run(site, *args, **env)
    assert code == 0, stderr
    return answer


def dead_ids(site):
    return [message["id"] for message in dead(site, "list", "--long")["messages"]]


def await_dead(site, count):
    wait_until(lambda: site.raw.count(DEAD) == count, PATIENCE, lambda: f"{count} dead copies, not {site.raw.count(DEAD)}")


def send_unknown(site, *keys, **options):
    return [site.app.send_task(NOPE, (key, "secret-payload"), ignore_result=True, **options).id for key in keys]


def metric_in_flight(worker):
    status, text = worker.http("/metrics")
    return status == 200 and "filestorage_commands_in_flight 1" in text


def test_a_look_groups_filters_and_changes_nothing(site):
    site.start()
    unknown = send_unknown(site, "a", "b", "c")
    site.raw.command("store", [], body="{", task_id="broken")
    site.raw.command("store", ["k", 1], task_id="pickled", content_type="application/x-python-serialize")
    site.raw.publish("hello", {}, content_type="text/plain", content_encoding="utf-8")
    await_dead(site, 6)

    listing = dead(site, "list")
    assert "messages" not in listing
    assert (listing["waiting"], listing["looked_at"], listing["matched"], listing["complete"]) == (6, 6, 6, True)
    first = listing["groups"][0]
    assert (first["count"], first["reason"], first["exception"], first["task"]) == (3, "not-registered", "NotRegistered", NOPE)
    assert first["oldest"] <= first["newest"]
    reasons = {group["reason"]: group["count"] for group in listing["groups"]}
    assert reasons == {"not-registered": 3, "decode-error": 1, "content-disallowed": 1 + (reasons["content-disallowed"] - 1)}

    for arguments, expected in (
        (("--reason", "not-registered"), unknown),
        (("--reason", "decode-error", "--reason", "not-registered"), [*unknown, "broken"]),
        (("--exception", "ContentDisallowed", "--task", "filestorage.store"), ["pickled"]),
        (("--task", NOPE, "--key", "b"), unknown[1:2]),
        (("--newer-than", "1h", "--task", NOPE), unknown),
        (("--older-than", "1h"), []),
        (("--task", NOPE, "--limit", "2"), unknown[:2]),
    ):
        assert sorted(m["id"] for m in dead(site, "list", "--long", *arguments)["messages"]) == sorted(expected), arguments
    scanned = dead(site, "list", "--scan", "2")
    assert (scanned["looked_at"], scanned["complete"]) == (2, False)

    before = [m["fingerprint"] for m in dead(site, "list", "--long")["messages"]]
    for _ in range(3):
        dead(site, "list")
    assert [m["fingerprint"] for m in dead(site, "list", "--long")["messages"]] == before
    assert len(set(before)) == 6
    row = dead(site, "list", "--long", "--key", "a")["messages"][0]
    assert (row["keys"], row["replays"], row["queue"], row["cut"]) == (["a"], 0, QUEUE, None)


def test_show_tells_all_but_the_payload(site):
    site.start()
    [task_id] = send_unknown(site, "a")
    await_dead(site, 1)
    [message] = dead(site, "show", task_id)["messages"]
    assert message["arguments"]["args"] == "('a', 'secret-payload')"  # the producer's own description
    assert message["exception"] == f"NotRegistered('{NOPE}')" and message["routing_key"] == QUEUE
    assert message["headers"]["task"] == NOPE and message["properties"]["correlation_id"] == task_id
    assert "body" not in message and message["body_bytes"] > 10
    [message] = dead(site, "show", message["fingerprint"], "--body")["messages"]
    assert message["body"]["encoding"] == "utf-8" and json.loads(message["body"]["data"])[0] == ["a", "secret-payload"]

    text = subprocess.run(
        [str(BINARY), "dead", "show", task_id], env=site.env(), cwd=site.folder, capture_output=True, text=True, check=True
    ).stdout
    assert f"task           {NOPE}" in text and "body           " in text
    code, answer, stderr = run(site, "show", task_id, "nobody")
    assert code == 66 and len(answer["messages"]) == 1 and "nobody" in stderr
    assert site.raw.count(DEAD) == 1


def test_what_fails_again_is_counted(site):
    site.start()
    [task_id] = send_unknown(site, "a")
    for replays in range(1, 4):
        await_dead(site, 1)
        answer = dead(site, "replay", task_id)
        assert (answer["replayed"], answer["failed"], answer["complete"]) == (1, 0, True)
        wait_until(
            lambda: [m["replays"] for m in dead(site, "list", "--long")["messages"]] == [replays], what="the next death"
        )
    [message] = dead(site, "show", task_id)["messages"]
    assert message["headers"]["x-filestorage-replays"] == 3
    assert message["headers"]["task"] == NOPE and message["arguments"]["args"] == "('a', 'secret-payload')"


def test_a_replayed_command_gets_a_fresh_chance(site):
    """It is dead of one crash and answered; its replay outlives another crash, and runs."""
    worker = site.start("-c", "4", MAX_CRASHES="2")
    reply = site.raw.reply_queue()
    with site.held_writes("k"):
        task_id = site.raw.command("store", ["k", "value"], reply_to=reply)
        for _ in range(2):
            wait_until(lambda: metric_in_flight(worker), what=worker.log)
            worker.kill()
            worker = site.start("-c", "4", MAX_CRASHES="2")
        await_dead(site, 1)
        assert site.raw.get(reply).json["result"]["exc_type"] == "WorkerLostError"
        assert dead(site, "list")["groups"][0]["reason"] == "crashed"
        assert dead(site, "replay", "--reason", "crashed")["replayed"] == 1
        wait_until(lambda: metric_in_flight(worker), what=worker.log)
        worker.kill()
        worker = site.start("-c", "4", MAX_CRASHES="2")
        wait_until(lambda: metric_in_flight(worker), what=worker.log)
    answer = site.raw.get(reply).json
    assert (answer["status"], answer["task_id"]) == ("SUCCESS", task_id)
    assert site.call("retrieve", "k") == "value"
    assert site.raw.count(DEAD) == 0


def test_what_no_queue_takes_stays_with_its_reason(site):
    site.raw.declare("gone")
    worker = site.spawn(queues=f"{QUEUE},gone").wait_ready()
    site.raw.command("nope", ["a"], task_id="one", headers={"x-mine": 5}, queue="gone", expiration="600000", delivery_mode=1)
    await_dead(site, 1)
    worker.stop()
    site.raw.channel.queue_delete("gone")
    code, answer, stderr = run(site, "replay", "--all")
    assert (code, answer["replayed"], answer["failed"]) == (75, 0, 1)
    assert answer["failures"][0]["id"] == "one" and "no queue takes it" in answer["failures"][0]["why"]
    assert "no queue takes it" in stderr and site.raw.count(DEAD) == 1

    site.raw.channel.queue_declare("gone", durable=True, auto_delete=False, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    code, answer, _ = run(site, "replay", "one")
    assert (code, answer["failed"]) == (75, 1) and "full" in answer["failures"][0]["why"]
    site.raw.channel.queue_delete("gone")
    site.raw.declare("gone")
    assert dead(site, "replay", "one", "--dry-run")["replayed"] == 1
    assert site.raw.count(DEAD) == 1 and site.raw.count("gone") == 0
    assert dead(site, "replay", "one")["replayed"] == 1
    message = site.raw.get("gone")
    assert message.headers["x-mine"] == 5 and message.headers["x-filestorage-replays"] == 1
    assert not [name for name in message.headers if name.startswith("x-filestorage-dead-")]
    assert message.properties["delivery_mode"] == 1 and "expiration" not in message.properties
    assert message.json == [["a"], {}, {}] and site.raw.count(DEAD) == 0


def test_an_undeliverable_callback_goes_to_its_own_queue(site):
    site.start(PARKED_MAX_AGE_SECONDS="1")
    site.raw.channel.queue_declare("full", durable=True, auto_delete=False, arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    callback = site.sig("store", "second", 2, immutable=True).set(queue="full")
    site.send("store", "first", 1, _link=callback).get(timeout=PATIENCE)
    await_dead(site, 1)
    assert dead(site, "list")["groups"][0]["reason"] == "undeliverable"
    site.raw.channel.queue_delete("full")
    site.raw.declare("full")
    assert dead(site, "replay", "--reason", "undeliverable")["replayed"] == 1
    message = site.raw.get("full")
    assert message.headers["task"] == "filestorage.store" and message.json[0] == ["second", 2]


def test_one_id_many_times_is_told_apart_and_dropped(site):
    site.start()
    for n in range(5):
        site.raw.command("nope", [f"k{n}"], task_id="same")
    send_unknown(site, "other")
    await_dead(site, 6)
    rows = dead(site, "list", "--long")["messages"]
    assert len({row["fingerprint"] for row in rows}) == 6
    third = next(row for row in rows if row["keys"] == ["k2"])
    assert dead(site, "drop", third["fingerprint"], "--dry-run")["dropped"] == 1
    assert site.raw.count(DEAD) == 6
    assert dead(site, "drop", third["fingerprint"])["dropped"] == 1
    assert sorted(row["keys"][0] for row in dead(site, "list", "--long")["messages"]) == ["k0", "k1", "k3", "k4", "other"]
    assert len(dead(site, "show", "same")["messages"]) == 4
    assert dead(site, "drop", "same", "--limit", "1")["dropped"] == 1
    assert dead(site, "drop", "same")["dropped"] == 3
    assert run(site, "drop", "same")[0] == 66
    assert run(site, "drop")[0] == 64
    assert run(site, "replay", "--limit", "1")[0] == 64
    assert dead(site, "drop", "--all")["dropped"] == 1 and site.raw.count(DEAD) == 0


def test_two_thousand_are_looked_at_and_replayed_in_order(site):
    worker = site.start()
    ids = [site.raw.command("nope", [f"k{n}"]) for n in range(2_000)]
    await_dead(site, 2_000)
    assert worker.stop() == 0
    begun = time.monotonic()
    assert dead_ids(site) == ids
    assert time.monotonic() - begun < 20
    assert dead_ids(site) == ids, "a look keeps the order"
    assert dead(site, "replay", "--all")["replayed"] == 2_000
    assert site.raw.count(DEAD) == 0
    assert [message.headers["id"] for message in site.raw.drain(QUEUE)] == ids


def test_large_and_cut_messages(site):
    worker = site.start()
    site.raw.command("nope", ["x" * (3 << 20)], task_id="large")
    await_dead(site, 1)
    site.raw.command("nope", ["k"], task_id="cut", headers={"x-large": "x" * 130_700})
    await_dead(site, 2)
    worker.stop()
    row = dead(site, "list", "--long")["messages"][0]
    assert row["body_bytes"] > 3 << 20 and row["id"] == "large"
    assert len(dead(site, "show", "large", "--body")["messages"][0]["body"]["data"]) == 64 << 10
    code, answer, stderr = run(site, "replay", "--all")
    assert (code, answer["replayed"], answer["not_replayable"]) == (65, 1, 1)
    assert answer["failures"][0]["id"] == "cut" and "x-large" in answer["failures"][0]["why"] and "--force" in stderr
    assert len(site.raw.get(QUEUE).raw) > 3 << 20
    code, answer, stderr = run(site, "replay", "cut", "--force")
    assert (code, answer["replayed"]) == (0, 1) and "x-large" in stderr
    message = site.raw.get(QUEUE)
    assert message.headers["id"] == "cut" and "x-large" not in message.headers


def test_an_interruption_loses_nothing(site):
    worker = site.start()
    ids = [site.raw.command("nope", [f"k{n}"]) for n in range(2_000)]
    await_dead(site, 2_000)
    worker.stop()
    for command in ("list", "replay"):
        arguments = [str(BINARY), "dead", command, *(["--all"] if command == "replay" else [])]
        process = subprocess.Popen(arguments, env=site.env(), cwd=site.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if command == "replay":
            wait_until(lambda: site.raw.count(QUEUE) > 0, what="the first replay", step=0.005)
        else:
            wait_until(lambda: site.raw.count(DEAD) < 2_000, what="the first look", step=0.005)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=TIMEOUT)
        if process.returncode != 0:
            assert process.returncode == 75 and b"interrupted" in stderr, stderr
        wait_until(lambda: site.raw.count(DEAD) + site.raw.count(QUEUE) == 2_000, what=site.queues)
    replayed = site.raw.count(QUEUE)
    assert dead(site, "replay", "--all")["replayed"] == 2_000 - replayed
    assert [message.headers["id"] for message in site.raw.drain(QUEUE)] == ids


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_broker_killed_during_a_replay_loses_nothing(site, kind):
    if not site.broker.can_restart:
        pytest.skip("the broker was given from outside")
    worker = site.start(CELERY_TASK_DEFAULT_QUEUE_TYPE=kind)
    ids = [site.raw.command("nope", [f"k{n}"], delivery_mode=2) for n in range(2_000)]
    await_dead(site, 2_000)
    worker.stop()
    process = subprocess.Popen(
        [str(BINARY), "dead", "replay", "--all"], env=site.env(), cwd=site.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: site.raw.count(QUEUE) > 0, what="the first replay", step=0.005)
    site.broker.kill()
    _, stderr = process.communicate(timeout=PATIENCE)
    site.broker.start()
    site.reconnect()
    assert process.returncode in (0, 69), stderr

    def all_replayed():
        """What a killed broker held comes back in parts."""
        code, answer, stderr = run(site, "list") if run(site, "replay", "--all")[0] in (0, 66) else (None, None, None)
        return code == 0 and answer["waiting"] == 0

    wait_until(all_replayed, PATIENCE)
    arrived = [message.headers["id"] for message in site.raw.drain(QUEUE)]
    assert set(arrived) == set(ids)
    assert max(arrived.count(task_id) for task_id in set(arrived)) <= 2


def test_looks_never_wear_a_message_of_a_quorum_queue_out(site):
    worker = site.start(CELERY_TASK_DEFAULT_QUEUE_TYPE="quorum")
    for key in "abcde":
        site.raw.command("nope", [key])
    await_dead(site, 5)
    worker.stop()
    ids = dead_ids(site)
    for _ in range(24):
        code, answer, stderr = run(site, "list", "--long")
        assert code == 0 and [m["id"] for m in answer["messages"]] == ids and stderr == "", "a queue of ours has no low limit"

    copies = site.raw.drain(DEAD)
    site.raw.channel.queue_delete(DEAD)
    site.raw.channel.queue_declare(
        DEAD, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum", "x-delivery-limit": 20}
    )
    for copy in copies:
        site.raw.publish(copy.raw, copy.headers, queue=DEAD, delivery_mode=2, correlation_id=copy.properties["correlation_id"])
    moved = 0
    for _ in range(50):
        code, answer, stderr = run(site, "list", "--long")
        assert code == 0 and sorted(m["id"] for m in answer["messages"]) == sorted(ids), stderr
        moved += "were moved to the end" in stderr
    assert 3 <= moved <= 6


def test_the_oldest_go_above_the_bound(site):
    worker = site.start(DEAD_MAX_MESSAGES="5")
    other = site.spawn(DEAD_MAX_MESSAGES="5", name="other", queues=QUEUE).wait_ready()
    ids = [site.raw.command("nope", [f"k{n}"]) for n in range(600)]
    wait_until(lambda: site.queues()[DEAD] == (5, 0), PATIENCE, site.queues, 0.5)
    assert len(dead_ids(site)) == 5
    # Two workers take turns, so the last five that died are among the last that were sent.
    assert set(dead_ids(site)) <= set(ids[-200:])

    def removed():
        texts = [each.http("/metrics")[1] for each in (worker, other)]
        lines = [line for text in texts for line in text.splitlines() if line.startswith("filestorage_dead_copies_removed_total ")]
        return sum(int(line.split()[1]) for line in lines)

    assert removed() == 595
    assert "the oldest dead copies were removed" in worker.log() + other.log()


def test_faults_are_named_with_their_remedy(broker, tmp_path):
    site = Site(broker, tmp_path, full_rights=False)
    try:
        check_faults(site)
        broker.import_definitions(broker.definitions(site.vhost, "--worker-reads-dead"))
        assert dead(site, "replay", "--all")["replayed"] == 1
    finally:
        broker.import_definitions(broker.definitions(site.vhost))
        site.close()


def check_faults(site):
    worker = site.start(DEAD_MAX_MESSAGES="1")
    send_unknown(site, "a")
    await_dead(site, 1)
    send_unknown(site, "b")
    wait_until(lambda: "dead_max_messages is not kept" in worker.log(), what=worker.log)
    site.raw.get(DEAD)
    code, _, stderr = run(site, "list", CELERY_BROKER_URL="amqp://guest:guest@127.0.0.1:1//")
    assert code == 69 and "127.0.0.1:1" in stderr
    code, _, stderr = run(site, "list", CELERY_BROKER_URL=site.url)
    assert code == 77 and "read permission on queue 'filestorage.dead'" in stderr
    code, _, stderr = run(site, "list", CELERY_BROKER_URL=site.broker.url(site.vhost, password="wrong"))
    assert code == 78 and "password" in stderr


def test_a_missing_queue_is_named(site):
    code, _, stderr = run(site, "list")
    assert code == 66 and "there is no queue filestorage.dead" in stderr


def test_a_terminal_shows_a_table(site):
    site.start()
    send_unknown(site, "a", "b")
    await_dead(site, 2)
    leader, follower = pty.openpty()
    done = subprocess.run(
        [str(BINARY), "dead", "list"], env=site.env(TERM="xterm"), cwd=site.folder, stdout=follower, stderr=follower, check=True
    )
    os.close(follower)
    text = b""
    while chunk := _read(leader):
        text += chunk
    os.close(leader)
    text = text.decode()
    assert done.returncode == 0 and "COUNT" in text and f"{NOPE}" in text and "2 messages match" in text, text


def _read(leader):
    try:
        return os.read(leader, 65536)
    except OSError:
        return b""
