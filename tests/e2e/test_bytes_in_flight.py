"""What the worker holds in memory is bounded by bytes, whatever is queued; everything is answered once, and nobody waits long.

The loads are scaled so that a debug binary gets through them. FILESTORAGE_TEST_FULL_LOAD=1 takes those that once ended a worker
under a limit of 1 GiB: 1,000 stores of 2 MiB, 200 of 8 MiB, 10,000 small ones before 500 of 8 MiB.
"""

import base64
import bz2
import json
import lzma
import os
import subprocess
import threading
import time
import uuid
import zlib

import pytest

from harness import DEAD, QUEUE, TIMEOUT, wait_until

FULL = os.environ.get("FILESTORAGE_TEST_FULL_LOAD") == "1"
MIB = 1 << 20
BUDGET = (256 if FULL else 48) * MIB
ABOVE = 144 * MIB  # beside the budget: the program, what the allocator keeps, what is just being read
LONG = 600 if FULL else 120
# Seconds that an answer of /livez and of a good command may take; without the full load this machine is at other work as well.
ALIVE, SOON = (1, 5) if FULL else (5, TIMEOUT)

# A disk that takes its time: each sync waits first. Loaded before the C library.
SLOW_SYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static void nap(void) { usleep(1000 * atoi(getenv("SLOW_SYNC_MS"))); }
int fsync(int fd) { nap(); return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { nap(); return ((int (*)(int)) dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


@pytest.fixture(scope="module")
def slow_sync(tmp_path_factory):
    """Environment of a worker whose syncs take 300 ms."""
    folder = tmp_path_factory.mktemp("slow-sync")
    source, library = folder / "slow_sync.c", folder / "slow_sync.so"
    source.write_text(SLOW_SYNC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SLOW_SYNC_MS": "300"}


class Memory(threading.Thread):
    """Samples the resident memory of a process that is not a file's."""

    def __init__(self, worker):
        super().__init__(daemon=True)
        self.worker, self.peak, self.ended = worker, 0, threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(0.02):
            try:
                with open(f"/proc/{self.worker.pid}/status", encoding="ascii") as status:
                    for line in status:
                        if line.startswith("RssAnon:"):
                            self.peak = max(self.peak, int(line.split()[1]) * 1024)
            except OSError:
                return

    def check(self):
        self.ended.set()
        self.join()
        assert self.peak > 0
        assert self.peak <= BUDGET + ABOVE, f"{self.peak / MIB:.0f} MiB were resident"


class Alive(threading.Thread):
    """Asks /livez again and again; none may be late."""

    def __init__(self, worker):
        super().__init__(daemon=True)
        self.worker, self.faults, self.ended = worker, [], threading.Event()
        # The port is open before the store is: that is the start.
        worker.http("/livez", timeout=30)
        self.start()

    def run(self):
        begun = time.monotonic()
        while not self.ended.wait(0.1):
            asked = time.monotonic()
            try:
                status, _ = self.worker.http("/livez", timeout=10 * ALIVE)
            except OSError as error:
                status = repr(error)
            took = time.monotonic() - asked
            if status != 200 or took > ALIVE:
                self.faults.append(f"{status} after {took:.1f} s, {asked - begun:.1f} s after the beginning")

    def check(self):
        self.ended.set()
        self.join()
        assert not self.faults, self.faults


def answers(site, reply, wanted, timeout=LONG):
    """Takes answers until there are so many; returns them by task id, each once."""
    found = {}

    def more():
        for message in site.raw.drain(reply):
            answer = message.json
            assert answer["task_id"] not in found, "answered twice"
            found[answer["task_id"]] = answer
        return len(found) >= wanted

    wait_until(more, timeout, lambda: f"{wanted} answers, {len(found)} came", step=0.1)
    return found


def check_stored(site, worker, found):
    assert {answer["status"] for answer in found.values()} == {"SUCCESS"}, list(found.values())[:3]
    worker.assert_alive()
    assert site.raw.count(DEAD) == 0
    assert len(site.workers) == 1


def queue_large(site, reply, count, size, name):
    # Not to be compressed by anything on the way, and quick to make.
    text = os.urandom(size // 2).hex()
    for n in range(count):
        site.raw.command("store", [f"{name}/{n}", f"{n:08}{text}"], reply_to=reply)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize(("count", "size"), [(1000, 2 * MIB), (200, 8 * MIB)] if FULL else [(60, 2 * MIB), (16, 8 * MIB)])
@pytest.mark.full_rights("a queue of another type is declared")
def test_large_stores_on_a_slow_disk(site, slow_sync, kind, count, size):
    site.raw.declare(QUEUE, arguments={"x-queue-type": kind})
    reply = site.raw.reply_queue()
    queue_large(site, reply, count, size, "large")
    worker = site.spawn(MAX_IN_FLIGHT_BYTES=BUDGET, **slow_sync)
    memory, alive = Memory(worker), Alive(worker)
    check_stored(site, worker, answers(site, reply, count))
    memory.check()
    alive.check()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.full_rights("a queue of another type is declared")
def test_large_stores_right_behind_small_ones(site, slow_sync, kind):
    """The prefetch has grown to its full count by then, so that many large ones are on their way at once."""
    small, large = (10_000, 500) if FULL else (1_000, 24)
    site.raw.declare(QUEUE, arguments={"x-queue-type": kind})
    reply = site.raw.reply_queue()
    for n in range(small):
        site.raw.command("exists", [f"small/{n}"], reply_to=reply)
    queue_large(site, reply, large, 8 * MIB, "large")
    worker = site.spawn(MAX_IN_FLIGHT_BYTES=BUDGET, **slow_sync)
    memory, alive = Memory(worker), Alive(worker)
    check_stored(site, worker, answers(site, reply, small + large))
    memory.check()
    alive.check()


CODECS = {
    "zlib": ("application/x-gzip", lambda text: zlib.compress(text, 9)),
    "xz": ("application/x-lzma", lambda text: lzma.compress(text, preset=6)),
    "bzip2": ("application/x-bz2", bz2.compress),
}


@pytest.mark.parametrize(("codec", "count"), [("zlib", 32), ("xz", 250)] if FULL else [("zlib", 6), ("xz", 8), ("bzip2", 4)])
def test_small_messages_that_unpack_to_large_ones(site, codec, count):
    """A good command beside them is answered soon, and none of them is held against another."""
    reply, good = site.raw.reply_queue(), site.raw.reply_queue()
    name, pack = CODECS[codec]
    # Of several keys where they are quick to make: what is read beside one another waits for one another's room.
    keys = [f"bomb/{n}" for n in range(count if codec == "zlib" else 1)]
    bodies = [pack(json.dumps([[key, "a" * (60 * MIB)], {}, {}]).encode()) for key in keys]
    assert all(len(body) < 70_000 for body in bodies)
    worker = site.start(MAX_IN_FLIGHT_BYTES=256 * MIB)
    memory, alive = Memory(worker), Alive(worker)
    for n in range(count):
        headers, body = {"compression": name}, bodies[n % len(bodies)]
        site.raw.command("store", None, headers=headers, body=body, content_encoding="utf-8", reply_to=reply)
    site.raw.command("store", ["good", 1], reply_to=good)
    began = time.monotonic()
    assert site.raw.get(good, timeout=SOON).json["status"] == "SUCCESS"
    print(f"good command beside {count} {codec}: {time.monotonic() - began:.1f} s")
    check_stored(site, worker, answers(site, reply, count))
    alive.check()
    memory.ended.set()
    memory.join()
    assert memory.peak <= (256 + 144) * MIB, f"{memory.peak / MIB:.0f} MiB were resident"


@pytest.mark.full_rights("a queue of another type is declared")
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_large_stores_while_the_broker_blocks(site, slow_sync, kind):
    """No answer can leave: nothing more is begun, and what is queued is not taken into memory meanwhile."""
    if not site.broker.can_restart:
        pytest.skip("this broker may not be throttled")
    count = 500 if FULL else 40
    site.raw.declare(QUEUE, arguments={"x-queue-type": kind})
    reply = site.raw.reply_queue()
    queue_large(site, reply, count, 2 * MIB, "large")
    worker = site.spawn(MAX_IN_FLIGHT_BYTES=BUDGET, **slow_sync)
    memory, alive = Memory(worker), Alive(worker)
    try:
        wait_until(lambda: site.raw.count(reply) > 0, LONG, "the first answer")
        site.broker.ctl("set_vm_memory_high_watermark", "0.00001")
        wait_until(lambda: "blocked" in worker.http("/readyz")[1], what="`blocked` on /readyz")
        time.sleep(60 if FULL else 5)
        worker.assert_alive()
    finally:
        site.broker.ctl("set_vm_memory_high_watermark", "0.4")
    check_stored(site, worker, answers(site, reply, count))
    memory.check()
    alive.check()


def test_a_kill_while_several_are_decoded_is_held_against_none(site):
    """By which of them nobody can say: each runs alone from then on, and only a death then would count."""
    reply = site.raw.reply_queue()
    name, pack = CODECS["bzip2"]
    for n in range(3):
        body = pack(json.dumps([[f"bomb/{n}", "a" * (30 * MIB)], {}, {}]).encode())
        site.raw.command("store", None, headers={"compression": name}, body=body, content_encoding="utf-8", reply_to=reply)
    good = site.raw.reply_queue()
    site.raw.command("store", ["good", 1], reply_to=good)
    once = {"MAX_IN_FLIGHT_BYTES": 256 * MIB, "MAX_CRASHES": 1}
    worker = site.start("-c", "8", **once)
    assert site.raw.get(good).json["status"] == "SUCCESS"
    worker.kill()
    assert site.raw.count(reply) == 0, "they were still being decoded"
    site.start("-c", "8", **once)
    found = answers(site, reply, 3)
    assert {answer["status"] for answer in found.values()} == {"SUCCESS"}, found
    assert site.raw.count(DEAD) == 0


@pytest.mark.full_rights("a second queue is declared")
def test_another_queue_does_not_wait_behind_large_ones(site, slow_sync):
    count = 200 if FULL else 20
    site.raw.declare("bulk")
    reply, good = site.raw.reply_queue(), site.raw.reply_queue()
    text = os.urandom(4 * MIB).hex()
    for n in range(count):
        site.raw.publish(
            json.dumps([[f"bulk/{n}", text], {}, {}]),
            {"task": "filestorage.store", "id": str(uuid.uuid4())},
            queue="bulk",
            content_type="application/json",
            content_encoding="utf-8",
            reply_to=reply,
        )
    worker = site.start(queues=f"bulk,{QUEUE}", MAX_IN_FLIGHT_BYTES=BUDGET, **slow_sync)
    for n in range(3):
        site.raw.command("store", [f"good/{n}", n], reply_to=good)
        assert site.raw.get(good, timeout=SOON).json["status"] == "SUCCESS"
    check_stored(site, worker, answers(site, reply, count))


def test_large_answers_at_once_are_bounded(site):
    count, size = (200, 14 * MIB) if FULL else (40, 6 * MIB)
    worker = site.start(MAX_IN_FLIGHT_BYTES=BUDGET)
    site.call("store", "large", os.urandom(size // 2).hex())
    reply = site.raw.reply_queue()
    memory, alive = Memory(worker), Alive(worker)
    for _ in range(count):
        site.raw.command("retrieve", ["large"], reply_to=reply)
    taken = 0

    def more():
        nonlocal taken
        while (message := site.raw.channel.basic_get(reply, no_ack=True)) is not None:
            assert json.loads(message.body)["status"] == "SUCCESS"
            taken += 1
        return taken == count

    wait_until(more, LONG, lambda: f"{count} answers, {taken} came")
    memory.check()
    alive.check()


def test_commands_of_any_size_on_one_key_keep_their_order(site):
    """Large and small, plain, compressed and in other encodings, the key by position, by name in front or behind: the last one stays."""
    site.start(MAX_IN_FLIGHT_BYTES=16 * MIB)
    reply = site.raw.reply_queue()
    sent = 0
    for turn in range(6):
        large = f"{turn}" * (3 * MIB)
        bodies = [
            ([["one", large], {}, {}], None),
            ([["one", turn], {}, {}], None),
            ([[], {"data": large, "key": "one"}, {}], "zlib"),
            ([["one", f"{turn}-small"], {}, {}], "zlib"),
            ([[], {"data": large, "key": "one"}, {}], None),
            ([["one", large], {}, {}], "utf-16"),
            ([["one", large], {}, {}], "base64"),
            ([["one", f"{turn}-last"], {}, {}], None),
        ]
        for body, form in bodies:
            headers, encoding = {}, "utf-8"
            text = json.dumps(body).encode()
            if form in CODECS:
                headers["compression"], pack = CODECS[form]
                text = pack(text)
            elif form:
                encoding = form
                text = base64.b64encode(text) if form == "base64" else text.decode().encode(form)
            site.raw.command("store", None, headers=headers, body=text, content_encoding=encoding, reply_to=reply)
            sent += 1
    found = answers(site, reply, sent)
    assert {answer["status"] for answer in found.values()} == {"SUCCESS"}
    assert site.call("retrieve", "one") == "5-last"


def test_protocol_1_of_any_size(site):
    site.start(MAX_IN_FLIGHT_BYTES=16 * MIB)
    reply = site.raw.reply_queue()
    for n, size in enumerate((10, 3 * MIB, 10)):
        body = {"task": "filestorage.store", "id": f"old-{n}", "args": ["old", f"{n}" * size], "kwargs": {}}
        site.raw.publish(json.dumps(body), content_type="application/json", content_encoding="utf-8", reply_to=reply)
    found = answers(site, reply, 3)
    assert {answer["status"] for answer in found.values()} == {"SUCCESS"}
    assert site.call("retrieve", "old") == "2" * 10


def test_large_messages_that_cannot_be_run(site):
    """Unreadable, misused and unknown ones, above what is read at once, end as small ones do."""
    site.start(MAX_IN_FLIGHT_BYTES=16 * MIB)
    reply = site.raw.reply_queue()
    large = "x" * (2 * MIB)
    wrong = site.raw.command("store", ["k", large, None, large], reply_to=reply)
    broken = site.raw.command("store", None, body=f'[["k", "{large}"', reply_to=reply)
    packed = site.raw.command("store", None, body=large, headers={"compression": "zlib"}, reply_to=reply)
    unknown = site.raw.command("nothing.known", ["k", large], reply_to=reply)
    late = site.raw.command("store", ["k", large], headers={"expires": "2020-01-01T00:00:00+00:00"}, reply_to=reply)
    found = answers(site, reply, 5)
    kinds = {task_id: (found[task_id]["status"], (found[task_id]["result"] or {}).get("exc_type")) for task_id in found}
    assert kinds[wrong] == ("FAILURE", "TypeError")
    assert kinds[broken] == kinds[packed] == ("FAILURE", "DecodeError")
    assert kinds[unknown] == ("FAILURE", "NotRegistered")
    assert kinds[late][0] == "REVOKED"
    assert site.call("retrieve", "k") is None
    wait_until(lambda: site.raw.count(DEAD) == 3, TIMEOUT, "three dead copies")


@pytest.mark.full_rights("the queue is declared before")
def test_a_hot_key_does_not_keep_another_waiting(site, slow_sync):
    count = 1500 if FULL else 600
    site.raw.declare(QUEUE)
    reply, other = site.raw.reply_queue(), site.raw.reply_queue()
    for n in range(count):
        site.raw.command("store", ["hot", n], reply_to=reply)
    site.raw.command("store", ["cold", 1], reply_to=other)
    worker = site.spawn("-c", "8", **{**slow_sync, "SLOW_SYNC_MS": "5"})
    assert site.raw.get(other).json["status"] == "SUCCESS"
    assert site.raw.count(reply) < count, "the hot key is still at work"
    check_stored(site, worker, answers(site, reply, count))
    assert site.call("retrieve", "hot") == count - 1
