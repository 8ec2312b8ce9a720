"""celery-exporter, which many put between Celery and Prometheus, counts what the worker does."""

import os
import re
import subprocess
import sys
import urllib.request

import pytest

from clients import packaged
from harness import QUEUE, TIMEOUT, failure, wait_until
from private import free_port

pytestmark = pytest.mark.full_rights("the exporter asks workers over the broker")
# Dani Hodovic's, by its name on PyPI, with the Celery of these tests; its other packages as old as it asks for.
PACKAGES = ["prometheus-exporter-celery==0.11.2", "celery==5.7.0", "kombu==5.7.0", "amqp==5.4.2"]


@pytest.fixture
def exporter(site):
    """Starts the exporter and returns what reads its metrics: a name and labels to a number, those with 0 left out."""
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        pytest.skip("celery-exporter 0.11.2 wants Python 3.11 or 3.12")
    try:
        python = packaged("exporter", sys.executable, PACKAGES)
    except RuntimeError as error:
        pytest.skip(str(error))
    port = free_port()
    script = "from src.cli import cli; cli()"
    options = ["--broker-url", site.broker.url(site.vhost), "--host", "127.0.0.1", "--port", str(port), "--retry-interval", "1"]
    log = (site.folder / "exporter.log").open("w+")
    env = {"PATH": os.environ["PATH"], "HOME": str(site.folder), "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen([python, "-c", script, *options], env=env, cwd=site.folder, stdout=log, stderr=subprocess.STDOUT)

    def read():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                text = answer.read().decode()
        except OSError:
            return None
        found = {}
        for name, labels, value in re.findall(r"^(celery_\w+)\{(.*)\} (\S+)$", text, re.M):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            key = (name, labels.get("name") or labels.get("queue_name") or "", labels.get("exception", ""))
            if float(value):
                found[key] = found.get(key, 0) + float(value)
        return found

    try:
        wait_until(lambda: read() is not None, 40, lambda: (site.folder / "exporter.log").read_text()[-2000:], 0.3)
        yield read
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def test_it_counts_the_commands_of_this_worker(site, exporter, capsys):
    site.start("-E")
    wait_until(lambda: exporter().get(("celery_worker_up", "", "")) == 1, TIMEOUT, "the worker", 0.3)
    for number in range(50):
        site.send("store", f"k/{number}", number, _ignore_result=True)
    for number in range(7):
        assert type(failure(site.send("retrieve", "../bad"))) is ValueError
    revoked = site.send("store", "k/revoked", 1, _countdown=2)
    revoked.revoke()
    failure(revoked)
    store, retrieve = "filestorage.store", "filestorage.retrieve"
    expected = {
        ("celery_task_received_total", store, ""): 51,
        ("celery_task_started_total", store, ""): 50,
        ("celery_task_succeeded_total", store, ""): 50,
        ("celery_task_revoked_total", store, ""): 1,
        ("celery_task_received_total", retrieve, ""): 7,
        ("celery_task_started_total", retrieve, ""): 7,
        ("celery_task_failed_total", retrieve, "ValueError"): 7,
        ("celery_task_runtime_count", store, ""): 50,
        ("celery_worker_up", "", ""): 1,
        ("celery_active_consumer_count", QUEUE, ""): 1,
        ("celery_active_worker_count", QUEUE, ""): 1,
    }
    seen = lambda: {key: value for key, value in exporter().items() if key in expected}
    wait_until(lambda: seen() == expected, 2 * TIMEOUT, lambda: f"{expected}, seen {exporter()}", 0.5)
    with capsys.disabled():
        print()
        for (name, of, exception), value in sorted(seen().items()):
            print(f"  {name:<32}{of:<24}{exception:<12}{value:g}")
