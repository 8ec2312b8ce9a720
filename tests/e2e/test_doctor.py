"""What `filestorage doctor` says of a worker that runs, and what a start says of rights that are missing."""

import json
import shutil
import signal
import subprocess
import urllib.request
import uuid

import pytest

from harness import BINARY, DEAD, METRICS, QUEUE, wait_events, wait_until


def doctor(site, **env):
    """Exit code, and every line by its check: status and text."""
    done = subprocess.run(
        [str(BINARY), "doctor", "--json"], env=site.env(**env), cwd=site.folder, capture_output=True, timeout=60, check=False
    )
    found = {}
    for line in json.loads(done.stdout)["checks"]:
        found.setdefault(line["check"], []).append((line["status"], line["text"]))
    return done.returncode, found


def test_doctor_asks_a_running_worker_and_tries_an_event(site):
    worker = site.start()
    site.call("store", "k", 1)
    wait_events(site.raw, 1)
    code, found = doctor(site, METRICS_PORT=worker.port)
    assert code == 0, found
    assert found["worker"] == [("ok", f"the worker at 127.0.0.1:{worker.port} is ready and healthy")]
    [(status, _)] = found["events"]
    assert status == "ok" and site.raw.count(METRICS) == 0, "the queue is bound to every event"

    shutil.rmtree(site.storage / "journal")
    wait_until(lambda: "deleted" in worker.http("/readyz")[1], what=worker.log)
    code, found = doctor(site, METRICS_PORT=worker.port)
    [(status, text)] = found["worker"]
    assert (code, status) == (69, "fault") and "journal" in text, found

    worker.signal(signal.SIGSTOP)
    code, found = doctor(site, METRICS_PORT=worker.port)
    worker.signal(signal.SIGCONT)
    assert code == 69 and "does not answer" in found["worker"][0][1], found
    assert worker.stop() == 0
    code, found = doctor(site, METRICS_PORT=worker.port)
    assert code == 0 and found["worker"][0][0] == "note" and "nobody listens" in found["worker"][0][1], found


def test_doctor_fails_while_a_running_worker_has_no_bucket(bucket_site):
    site = bucket_site
    settings = {"GCS_PROJECT_ID": "e2e"}  # a worker makes a bucket that is missing when it starts
    worker = site.start(**settings)
    assert doctor(site, METRICS_PORT=worker.port, **settings)[0] == 0
    request = urllib.request.Request(f"{site.server.url}/storage/v1/b/{site.bucket}", method="DELETE")
    urllib.request.urlopen(request, timeout=10).close()
    code, found = doctor(site, METRICS_PORT=worker.port, **settings)
    faults = [text for lines in found.values() for status, text in lines if status == "fault"]
    assert code != 0 and any(site.bucket in text for text in faults), found


@pytest.mark.full_rights("the test's own user has fewer")
def test_a_start_names_the_missing_permission_and_its_use(site):
    user = f"least-{uuid.uuid4().hex[:8]}"
    for name in (QUEUE, METRICS):
        site.raw.declare(name)
    site.raw.channel.exchange_declare("filestorage.events", "topic", durable=True, auto_delete=False)
    site.broker.ctl("add_user", user, "word")
    try:
        site.broker.ctl("set_permissions", "-p", site.vhost, user, "^$", ".*", ".*")
        worker = site.start(CELERY_BROKER_URL=site.broker.url(site.vhost, user, "word"))
        lack = f"user '{user}' lacks the configure permission on"
        assert f"{lack} queue '{DEAD}'" in worker.log()
        assert f"{lack} queues and exchanges 'filestorage.delay.*'" in worker.log() and "countdown" in worker.log()
        assert "lacks" not in site.start(name="other").log(), "who may make queues misses nothing"
    finally:
        site.broker.ctl("delete_user", user)
