"""Commands whose bucket is away and has no fallback run again: none is lost, none undoes what is newer."""

import json
import os
import time

import pytest

from buckets import BucketSite
from harness import failure, wait_until

SETTINGS = {"ENABLE_LOCAL_FALLBACK": "false", "MAX_RETRIES": 0, "MESSAGE_MAX_RETRIES": 3, "ENABLE_CACHE": "false"}


@pytest.fixture(params=["gcs", "s3"])
def away(request, broker, tmp_path):
    site = BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    yield site
    site.close()


@pytest.fixture
def gcs_site(request, broker, tmp_path):
    site = BucketSite(broker, tmp_path, request.getfixturevalue("gcs"))
    yield site
    site.close()


def replies(site, queue, taken):
    """All answers so far, by task id, in order."""
    for message in site.raw.drain(queue):
        taken.setdefault(message.json["task_id"], []).append(message.json)
    return taken


def ends(taken):
    return {id for id, answers in taken.items() if answers[-1]["status"] in ("SUCCESS", "FAILURE")}


def test_an_outage_uses_up_no_retries(gcs_site):
    """FILESTORAGE_TEST_OUTAGE, as 600/5000, makes the outage longer: seconds and commands."""
    # At least longer than all retries together would take.
    seconds, count = (int(part) for part in os.environ.get("FILESTORAGE_TEST_OUTAGE", "45/1000").split("/"))
    site = gcs_site
    site.start(**SETTINGS)
    assert site.call("store", "before", 1)["key"] == "before"
    answers, taken = site.raw.reply_queue(), {}
    site.proxy.down("refuse")
    ids = {site.raw.command("store", [f"k/{n}", f"value {n}"], reply_to=answers): n for n in range(count)}
    time.sleep(seconds)
    replies(site, answers, taken)
    assert not ends(taken), "nothing is given up"
    began = sum(len(found) for found in taken.values())
    assert began <= 3 * 64, f"{began} attempts: only what had begun when the outage was noticed is tried again"
    site.proxy.up()
    began_again, limit = time.monotonic(), 120 + count // 10
    wait_until(lambda: len(ends(replies(site, answers, taken))) == len(ids), limit, lambda: f"{len(ends(taken))} of {len(ids)}", 0.5)
    late = time.monotonic() - began_again
    print(f"outage of {seconds} s, {count} commands: {began} attempts meanwhile, all answered {late:.0f} s after its end")
    assert {found[-1]["status"] for found in taken.values()} == {"SUCCESS"}
    assert all(found[-1]["result"]["key"] == f"k/{ids[id]}" for id, found in taken.items())
    assert site.names() == sorted(["before", *(f"k/{n}" for n in range(count))])
    for n in (0, count // 2, count - 1):
        assert site.call("retrieve", f"k/{n}") == f"value {n}"


def test_a_retried_write_does_not_undo_a_newer_one(away):
    site = away
    site.start(**SETTINGS)
    for key in ("stored", "deleted"):
        site.call("store", key, "old")
    answers, taken = site.raw.reply_queue(), {}
    site.proxy.down("refuse")
    first = site.raw.command("store", ["stored", "first"], reply_to=answers)
    gone = site.raw.command("delete", ["deleted"], reply_to=answers)
    wait_until(lambda: {first, gone} <= set(replies(site, answers, taken)), 40, lambda: taken, 0.1)
    assert [taken[id][0]["status"] for id in (first, gone)] == ["RETRY", "RETRY"]
    assert taken[first][0]["result"]["exc_type"] == "StorageUnavailable"
    site.proxy.up()
    # Newer than both, and confirmed before these come back.
    assert site.send("store", "stored", "second").get(timeout=60)["key"] == "stored"
    assert site.send("store", "deleted", "made anew").get(timeout=60)["key"] == "deleted"
    wait_until(lambda: {first, gone} <= ends(replies(site, answers, taken)), 90, lambda: taken, 0.2)
    assert [taken[id][-1]["status"] for id in (first, gone)] == ["SUCCESS", "SUCCESS"]
    assert (site.call("retrieve", "stored"), site.call("retrieve", "deleted")) == ("second", "made anew")


def test_the_rest_of_a_chain_waits_for_the_retry(gcs_site):
    site = gcs_site
    site.start(**SETTINGS)
    site.call("store", "warm", 1)
    site.proxy.down("refuse")
    chain = site.sig("store", "chained", "value", immutable=True) | site.sig("retrieve", "chained", immutable=True)
    result = chain.apply_async()
    time.sleep(3)
    site.proxy.up()
    assert result.get(timeout=90) == "value"


def test_at_the_end_of_its_retries_a_command_fails(gcs_site):
    site = gcs_site
    site.start(**SETTINGS | {"MESSAGE_MAX_RETRIES": 0})
    site.call("store", "warm", 1)
    site.proxy.down("refuse")
    assert type(failure(site.send("store", "k", 1), timeout=60)).__name__ == "StorageUnavailable"
    answers, taken = site.raw.reply_queue(), {}
    id = site.raw.command("retrieve", ["k"], headers={"max_retries": 1}, reply_to=answers)
    wait_until(lambda: id in ends(replies(site, answers, taken)), 90, lambda: taken, 0.2)
    assert [answer["status"] for answer in taken[id]] == ["RETRY", "FAILURE"], json.dumps(taken)
