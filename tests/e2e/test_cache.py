"""Values in the memory of a worker: counted, told in events, and never older than the file."""

import subprocess
import time

from harness import BINARY, wait_events, wait_until

# Longer than the clock of any file system takes to tick: only then does the time of a file prove anything.
SETTLED = 0.06


def lookups(site, ids):
    """What the events of these commands say of the cache."""
    found = wait_events(site.raw, lambda events: {event["data"]["task_id"] for event in events} >= set(ids))
    told = {event["data"]["task_id"]: event["data"]["cache"] for event in found}
    return [told[task_id] for task_id in ids]


def test_a_cached_value_is_a_hit_and_counted(site):
    worker = site.start()
    stored = site.send("store", "k", "value")
    stored.get(timeout=60)
    time.sleep(SETTLED)
    reads = [site.send("retrieve", "k")]
    assert reads[0].get(timeout=60) == "value"
    for _ in range(2):
        reads.append(site.send("retrieve", "k"))
        assert reads[-1].get(timeout=60) == "value"
    missing = site.send("retrieve", "missing")
    assert missing.get(timeout=60) is None
    assert lookups(site, [stored.id, *(read.id for read in reads), missing.id]) == [None, "miss", "hit", "hit", "miss"]
    stats = site.call("get_stats")
    assert (stats["cache_enabled"], stats["cache_size"]) == (True, 1)
    metrics = stats["metrics"]
    assert (metrics["cache_hits"], metrics["cache_misses"], metrics["cache_hit_rate"]) == (2, 2, 0.5)
    text = worker.http("/metrics")[1]
    assert 'filestorage_cache_lookups_total{outcome="hit"} 2' in text and "filestorage_cache_entries 1" in text


def test_a_write_by_the_shell_is_never_missed(site):
    site.start()
    old = 0
    for number in range(40):
        value = f"{number:04}"
        done = subprocess.run([BINARY, "store", "k"], input=value.encode(), env=site.env(), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        if number % 2:
            time.sleep(SETTLED)
        for _ in range(3):
            old += site.call("retrieve", "k") not in (value, value.encode())
    assert old == 0 and site.call("get_stats")["metrics"]["cache_hits"] >= 40
    subprocess.run([BINARY, "delete", "k"], env=site.env(), capture_output=True, timeout=60, check=True)
    assert site.call("retrieve", "k") is None


def test_the_cache_can_be_turned_off(site):
    site.start(ENABLE_CACHE="false")
    site.call("store", "k", "value")
    time.sleep(SETTLED)
    reads = [site.send("retrieve", "k") for _ in range(2)]
    assert [read.get(timeout=60) for read in reads] == ["value", "value"]
    assert lookups(site, [read.id for read in reads]) == [None, None]
    stats = site.call("get_stats")
    assert (stats["cache_enabled"], stats["cache_size"], stats["metrics"]["cache_hits"]) == (False, 0, 0)


def test_what_has_expired_is_not_answered_from_memory(site):
    site.start()
    site.call("store", "k", "value", ttl_seconds=1.5)
    time.sleep(SETTLED)
    assert [site.call("retrieve", "k") for _ in range(2)] == ["value", "value"]
    wait_until(lambda: site.call("retrieve", "k") is None)
    # The memory is free soon after.
    wait_until(lambda: site.call("get_stats")["cache_size"] == 0)
