"""A cluster under load while parts of it are killed, cut off, paused, restarted and replaced.

A client on the surviving nodes keeps a ledger. Nothing that was confirmed may be lost, answered in two ways or wrongly, and
nobody may wait for ever. What was measured is printed at the end of the run.
"""

import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable

import pytest
from amqp.basic_message import Message

from cluster import BROKERS, QUEUE, WORKERS, Cluster
from harness import wait_until
from images import image_id, newer_image
from ledger import ABSENT, table
from load import Load
from stack import FIGURES, call, figure

# Commands sent while each fault lasts, at least.
COMMANDS = 2000
ANSWERS = 200
# Seconds after the end of a fault in which everything must have been answered: above every time-out of worker and broker. One
# write may meet a dead connection at each of its four attempts of 30 s.
PATIENCE = 240


@pytest.fixture(scope="module")
def cluster(images):
    cluster = Cluster(images)
    try:
        yield cluster.up(timeout=400).wait_serving()
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def rows():
    """The table of the faults, printed at the end of the run."""
    rows = []
    yield rows
    FIGURES.extend(table(rows))


@pytest.fixture(scope="module")
def newer(images):
    """A second image of the worker, as an upgrade brings it; of the same program; `newer_image` says why."""
    return newer_image(images["FILESTORAGE_IMAGE"])


@dataclass
class Fault:
    """What happens to the cluster. `strike` does it and undoes it; the load goes on meanwhile."""

    name: str
    strike: Callable
    # Brokers that are lost: the client is on the others.
    lost: Callable = lambda cluster: []
    # What a read may answer meanwhile, when only the fault can be the reason.
    errors: frozenset = frozenset()

    def __str__(self):
        return self.name


@contextmanager
def undone(cluster, undo, services):
    """Undoes a fault in the end, also when the test has failed: it then tells how things stood, and leaves the next a whole cluster."""
    try:
        yield
    except AssertionError:
        print(cluster.tail())
        raise
    finally:
        for service in services:
            undo(service)


def nothing(cluster, load, lost):
    pass


def worker_killed(cluster, load, lost):
    cluster.signal(WORKERS[0])
    load.wait_flowing(ANSWERS)
    cluster.wait_workers()


def broker_killed(cluster, load, lost):
    cluster.compose("kill", *lost)
    with undone(cluster, cluster.start, lost):
        load.wait_flowing(ANSWERS)
    cluster.wait_brokers()


def broker_cut(cluster, load, lost):
    cut = {broker: cluster.disconnect(broker) for broker in lost}
    with undone(cluster, lambda broker: cluster.connect(broker, cut[broker]), lost):
        load.wait_flowing(ANSWERS)
    cluster.wait_brokers()


def broker_paused(cluster, load, lost):
    for broker in lost:
        cluster.pause(broker)
    with undone(cluster, cluster.unpause, lost):
        load.wait_flowing(ANSWERS)
    cluster.wait_brokers()


def broker_parted(cluster, load, lost):
    for broker in lost:
        cluster.part(broker)
    with undone(cluster, cluster.unite, lost):
        load.wait_flowing(2 * ANSWERS)
    cluster.wait_brokers()


def bucket_cut(cluster, load, lost):
    networks = cluster.disconnect("gcs")
    # That everything is synced is waited for once the load has ended: a key that is written all the time stays behind.
    with undone(cluster, lambda bucket: cluster.connect(bucket, networks), ["gcs"]):
        # The first attempts wait for their time-out, the rest finds the breaker open.
        wait_until(cluster.pending, PATIENCE, "a write that waits for the bucket", 0.2)
        load.wait_flowing(ANSWERS)


def workers_restarted(cluster, load, lost):
    for worker in WORKERS:
        cluster.stop(worker)
        cluster.start(worker)
        cluster.wait_workers()


def brokers_restarted(cluster, load, lost):
    for broker in BROKERS:
        cluster.stop(broker)
        cluster.start(broker)
        cluster.wait_brokers()


def workers_upgraded(cluster, load, lost):
    for worker in WORKERS:
        before = cluster.inspect(worker, "{{.Image}}")
        cluster.upgrade(worker, cluster.newer)
        cluster.wait_workers()
        assert cluster.inspect(worker, "{{.Image}}") == image_id(cluster.newer) != before


def leading(cluster):
    """The broker that leads the queue: the one whose loss is felt."""
    return [cluster.leader(QUEUE)]


READS = frozenset({"StorageUnavailable"})
FAULTS = [
    Fault("nothing", nothing),
    Fault("worker killed", worker_killed),
    Fault("broker killed", broker_killed, leading),
    Fault("broker cut from its network", broker_cut, leading),
    Fault("broker paused", broker_paused, leading),
    Fault("broker cut from the other brokers", broker_parted, leading),
    Fault("bucket cut from its network", bucket_cut, errors=READS),
    Fault("workers restarted in turn", workers_restarted),
    Fault("workers upgraded in turn", workers_upgraded),
    Fault("brokers restarted in turn", brokers_restarted),
]


def test_the_main_job(cluster):
    app = cluster.app(";".join(cluster.urls()), task_default_queue_type="quorum")
    receipt = call(app, "store", "main/job", {"n": 1}, {"author": "Ada"})
    assert (receipt["backend"], receipt["pending_sync"]) == ("gcs", False)
    assert call(app, "retrieve", "main/job") == {"n": 1}
    assert call(app, "stat", "main/job")["metadata"] == {"author": "Ada"}
    assert cluster.bucket().blob("main/job").download_as_bytes() == b'{"n":1}'
    assert call(app, "delete", "main/job") is True
    assert call(app, "exists", "main/job") is False


def test_the_brokers_stamp_what_comes_in(cluster):
    """By it workers know a message again that a node hands out twice."""
    for url in cluster.urls():
        with cluster.app(url).connection_for_write() as connection, connection.channel() as channel:
            queue = channel.queue_declare(str(uuid.uuid4()), exclusive=True).queue
            before = time.time()
            channel.basic_publish_confirm(Message("text"), routing_key=queue)
            stamp = channel.basic_get(queue, no_ack=True).headers["timestamp_in_ms"]
            assert before - 5 < stamp / 1000 < time.time() + 5


def test_setup_again_gives_back_the_policies_of_this_version(cluster):
    """As after an upgrade: RabbitMQ 4 would drop what comes back often."""
    before = cluster.policies()
    assert {policy["delivery-limit"] for policy in before.values()} == {-1}
    cluster.ctl("set_policy", "--apply-to", "queues", "filestorage", "^filestorage", '{"max-length": 1000000}')
    assert cluster.policies() != before
    cluster.compose("up", "-d", "--no-deps", "setup")
    assert cluster.wait_exited("setup") == 0, cluster.logs("setup")
    assert cluster.policies() == before


def test_the_ledger_sees_what_is_planted(cluster):
    load = Load(cluster.urls())
    try:
        load.start().stop(ANSWERS)
        load.drain(PATIENCE)
        clean = load.ledger.judge()
        held = [key for key in load.ledger.keys() if clean.legal(key)[0] is not ABSENT]
        bucket = cluster.bucket()
        bucket.blob(held[0]).delete()
        bucket.blob(held[1]).upload_from_string(b"planted")
        store = next(command for command in load.ledger.snapshot() if command.op == "store")
        load.plant_reply(store.id, {**store.first.result, "generation": "planted"})
        verdict = load.verdict(bucket)
        load.clear(bucket)
    finally:
        load.close()
    assert len(verdict.lost) == 2 and all(held[0] in text for text in verdict.lost)  # by the workers and in the bucket
    assert verdict.wrong and all(held[1] in text for text in verdict.wrong)
    assert len(verdict.doubled) == 1 and store.id in verdict.doubled[0]
    assert verdict.unanswered == []


def test_three_workers_share_one_queue(cluster):
    before = {worker: cluster.commands(worker) for worker in WORKERS}
    load = Load(cluster.urls(), rate=5000, window=1000, senders=8)
    try:
        load.start().stop(COMMANDS)
        load.drain(PATIENCE)
        verdict = load.ledger.judge()
        load.clear(cluster.bucket())
    finally:
        load.close()
    done = {worker: cluster.commands(worker) - before[worker] for worker in WORKERS}
    total = sum(done.values())
    shares = " / ".join(f"{100 * count / total:.0f} %" for count in done.values())
    figure(f"three workers on one queue: {verdict.numbers()['rate']:.0f} commands/s from one Python client, shares {shares}")
    assert total == len(load.ledger.commands) and verdict.faults() == []
    # The broker hands out in turn; a worker that gets nothing is broken, whatever the machine.
    assert min(done.values()) > total / 10


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_nothing_is_lost_doubled_or_wrong(cluster, rows, newer, fault):
    lost = fault.lost(cluster)
    load = Load(cluster.urls(without=lost))
    cluster.newer = newer
    try:
        load.start().wait_flowing(ANSWERS)
        fault.strike(cluster, load, lost)
        load.wait_flowing(ANSWERS)
        load.stop(COMMANDS)
        load.drain(PATIENCE)
        cluster.wait_workers()
        cluster.wait_synced(PATIENCE)
        # One of them may have sent what waited for the bucket while another still refuses to read from it.
        cluster.wait_reached(PATIENCE)
        verdict = load.verdict(cluster.bucket(), fault.errors, PATIENCE)
        # So that the next row waits for its fault alone: with 15,000 objects the emulator takes seven times as long for each.
        load.clear(cluster.bucket())
    finally:
        load.close()
    row = {"fault": fault.name, **verdict.numbers(until=load.stopped)}
    rows.append(row)
    print(*table([row]), *load.troubles[:20], sep="\n")
    assert verdict.faults() == [], f"{len(verdict.faults())} faults; the first: {verdict.faults()[:10]}"
    assert row["sent"] >= COMMANDS and row["confirmed"] > COMMANDS / 2
