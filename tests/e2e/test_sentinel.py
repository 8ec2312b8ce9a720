"""Results in a Redis that sentinels watch: the primary dies, and a replica takes its place."""

import subprocess

import pytest

from conftest import full_rights
from harness import BINARY, QUEUE, wait_until
from redis_server import RedisSite, Sentinels


@pytest.fixture
def watched(request, broker, tmp_path):
    """A site on a primary with a replica and three sentinels."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = Sentinels(folder, count=3)
    options = {"master_name": Sentinels.NAME, "min_other_sentinels": 2}
    site = RedisSite(broker, tmp_path, server, full_rights(request), options=options)
    yield site
    site.close()
    server.close()


def test_a_client_gets_its_answer(watched, key):
    watched.start()
    assert watched.call("store", key, "x")["key"] == key
    assert watched.call("retrieve", key) == "x"


@pytest.mark.parametrize("how", ["kill", "pause", "failover"])
def test_a_failover_amid_load_loses_no_result(watched, key, how):
    worker = watched.start()
    old = watched.server.servers[0]
    before = watched.server.primary()
    sent = [watched.post("store", f"{key}/{n}", n) for n in range(400)]
    wait_until(lambda: len(watched.object_files()) > 100, what="some are done")
    if how == "kill":
        old.kill()
    elif how == "pause":
        old.pause()
    else:
        watched.server._known.sentinels[0].execute_command("SENTINEL", "FAILOVER", Sentinels.NAME)
    sent += [watched.post("exists", f"{key}/{n}") for n in range(100)]
    wait_until(lambda: watched.server.primary() not in (None, before), 30, "a replica is the primary")
    for result in sent:
        wait_until(lambda: (watched.server.meta(result.id) or {}).get("status") == "SUCCESS", 60, lambda: worker.log()[-3000:])
    wait_until(lambda: watched.queues()[QUEUE] == (0, 0), 60, "all is acknowledged")
    watched.wait_mended(worker)
    # A client that comes now finds the new primary by itself.
    client = watched.client()
    assert client.send_task("filestorage.exists", [key]).get(timeout=20) is False
    client.close()
    if how == "pause":
        # It comes back, takes itself for the primary, is made a replica, and nothing is lost by that either.
        old.resume()
        sent = [watched.post("exists", f"{key}/{n}") for n in range(50)]
        for result in sent:
            wait_until(lambda: (watched.server.meta(result.id) or {}).get("status") == "SUCCESS", 60, lambda: worker.log()[-3000:])


def test_a_result_waits_for_a_replica(watched, key):
    worker = watched.start()
    watched.call("store", key, 1)
    # Looked for every five seconds.
    wait_until(lambda: watched.server.servers[0].client.info("replication")["connected_slaves"] == 1, what="the replica is connected")
    watched.server.servers[1].pause()
    result = watched.post("exists", key)
    assert "no replica has confirmed" in watched.wait_degraded(worker)
    ready, unsettled = watched.queues()[QUEUE]
    parked = sum(sum(counts) for name, counts in watched.queues().items() if name.startswith("filestorage.parked"))
    assert ready + unsettled + parked >= 1, "it is not confirmed"
    watched.server.servers[1].resume()
    wait_until(lambda: (watched.server.meta(result.id) or {}).get("status") == "SUCCESS", 60, lambda: worker.log()[-3000:])
    watched.wait_mended(worker)
    wait_until(lambda: watched.queues()[QUEUE] == (0, 0), 60, "all is acknowledged")


def test_sentinels_without_a_primary_are_named(watched, key):
    worker = watched.spawn(CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS='{"master_name": "another"}')
    wait_until(lambda: "the sentinel 127.0.0.1:" in worker.http("/readyz")[1], what=lambda: worker.log())
    assert not worker.ready()
    done = subprocess.run(
        [str(BINARY), "doctor"],
        env=watched.env(CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS=""),
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 78 and "master_name" in done.stdout + done.stderr, done
