"""`filestorage queues`: what workers leave at the broker is listed, and what nobody needs is removed."""

import json
import subprocess

import pytest

from harness import BINARY, DEAD, METRICS, QUEUE, Site, wait_until

pytestmark = pytest.mark.full_rights("queues are made and removed")
OURS = {DEAD, METRICS, "filestorage.parked", *(f"filestorage.parked.{wait}" for wait in (5000, 30000, 300000))}


def run(site, *args, **env):
    done = subprocess.run(
        [str(BINARY), "queues", *args, "--json"],
        env=site.env(**env), cwd=site.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def listed(site):
    code, answer, stderr = run(site)
    assert code == 0 and "prune" not in answer, stderr
    return {queue["name"]: queue for queue in answer["queues"]}, {exchange["name"] for exchange in answer["exchanges"]}


def kept(answer):
    return {one["name"]: one["why"] for one in answer["prune"]["kept"]}


def removed(answer):
    return {one["name"] for one in answer["prune"]["removed"]}


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_what_is_empty_and_unused_goes_and_nothing_else(site, kind):
    env = {"CELERY_TASK_DEFAULT_QUEUE_TYPE": kind, "ENABLE_EVENTS": "true"}
    worker = site.start(**env)
    site.raw.command("store", ["k", 1], headers={"eta": "2999-01-01T00:00:00+00:00"})
    site.raw.command("store", ["k", 1])
    delay = wait_until(lambda: next((name for name in site.queues() if name.startswith("filestorage.delay.")), None), what="a delay queue")
    wait_until(lambda: site.queues()[METRICS][0] == 1, what="an event", step=0.3)

    queues, exchanges = listed(site)
    assert set(queues) == OURS | {delay} and exchanges == {"filestorage.events", "filestorage.invalidations", delay}
    assert queues["filestorage.parked"]["consumers"] == 1 and queues[delay]["messages"] == 1
    code, answer, _ = run(site, "--prune", "--dead")
    assert code == 75 and not removed(answer) and "a worker runs" in kept(answer)[DEAD]
    assert worker.stop() == 0

    code, answer, _ = run(site, "--prune", "--dead", "--dry-run")
    assert code == 0 and removed(answer) == (OURS - {METRICS}) | {"filestorage.invalidations"}
    assert set(listed(site)[0]) == OURS | {delay}

    code, answer, stderr = run(site, "--prune")
    assert code == 0, stderr
    assert removed(answer) == (OURS - {METRICS, DEAD}) | {"filestorage.invalidations"}
    why = kept(answer)
    assert set(why) == {METRICS, DEAD, delay, "filestorage.events"}  # the exchange of the delay has its name
    assert "--dead" in why[DEAD] and why[METRICS] == "it holds 1 messages" and METRICS in why["filestorage.events"]
    assert sum(one["name"] == delay for one in answer["prune"]["kept"]) == 2
    assert site.queues()[delay] == (1, 0) and QUEUE in site.queues()

    site.raw.drain(METRICS), site.raw.drain(delay)
    code, answer, _ = run(site, "--prune", "--dead")
    assert code == 0 and not kept(answer)
    assert set(site.queues()) == {QUEUE}, "the queue of commands is the application's"
    assert listed(site) == ({}, set())

    # The next worker makes everything again.
    site.start(**env)
    wait_until(lambda: set(listed(site)[0]) == OURS, what=site.queues, step=0.3)


def test_a_queue_to_which_a_full_step_leads_stays(site):
    worker = site.start()
    wait_until(lambda: OURS <= set(site.queues()), what=site.queues, step=0.3)
    assert worker.stop() == 0
    site.raw.channel.queue_delete("filestorage.parked.300000")
    site.raw.declare("filestorage.parked.300000")
    site.raw.publish("waits", {}, queue="filestorage.parked.300000")
    code, answer, _ = run(site, "--prune")
    assert code == 0 and "filestorage.parked.5000" in removed(answer)
    assert "filestorage.parked.300000 leads to it" in kept(answer)["filestorage.parked"]
    assert site.raw.count("filestorage.parked.300000") == 1


def test_without_the_right_nothing_is_removed(broker, tmp_path):
    site = Site(broker, tmp_path, full_rights=False)
    try:
        code, answer, stderr = run(site, "--prune")
        assert code == 77 and not removed(answer) and "configure permission" in stderr, stderr
    finally:
        site.close()
