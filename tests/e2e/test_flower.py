"""Flower sees the worker: its pages open, and its actions act."""

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from harness import QUEUE, TIMEOUT, wait_until

HERE = Path(__file__).parent
pytestmark = pytest.mark.full_rights("whoever may ask workers over the broker may stop them, so producers may not")


@pytest.fixture
def flower(site):
    """Flower on a free port; returns what fetches from it."""
    pytest.importorskip("flower")
    env = {**os.environ, "PEER_BROKER_URL": site.broker.url(site.vhost), "PYTHONPATH": str(HERE), "FLOWER_UNAUTHENTICATED_API": "true"}
    log = (site.folder / "flower.log").open("w+")
    command = [sys.executable, "-m", "celery", "-A", "peer", "flower", "--address=127.0.0.1", "--port=0", "--debug=False"]
    # Port 0 is none for Flower: one that is free a moment before.
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command[command.index("--port=0")] = f"--port={port}"
    process = subprocess.Popen(command, env=env, cwd=site.folder, stdout=log, stderr=subprocess.STDOUT)

    def fetch(path, data=None):
        """Status and body."""
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, method="POST" if data is not None else "GET")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    wait_until(lambda: fetch("/healthcheck")[0] == 200, 40, lambda: (site.folder / "flower.log").read_text()[-2000:], 0.3)
    yield fetch
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()


def test_flower_shows_the_worker_and_its_tasks(site, flower):
    worker = site.start("-E")
    name = wait_until(lambda: next(iter(json.loads(flower("/api/workers?refresh=1")[1] or "{}")), None), 30, "a worker", 0.5)
    assert name.startswith("e2e@")
    about = json.loads(flower("/api/workers?refresh=1")[1])[name]
    assert about["stats"]["broker"]["virtual_host"] == site.vhost
    assert [queue["name"] for queue in about["active_queues"]] == [QUEUE]
    assert "filestorage.store" in about["registered"]
    status, page = flower(f"/worker/{name}")
    assert status == 200 and "filestorage.store" in page

    stored = site.send("store", "k", "top secret")
    assert stored.get(timeout=TIMEOUT)["key"] == "k"
    failed = site.send("copy", "missing", "other")
    failed.get(timeout=TIMEOUT, propagate=False)

    def info(id):
        status, body = flower(f"/api/task/info/{id}")
        return json.loads(body) if status == 200 else {}

    wait_until(lambda: info(stored.id).get("state") == "SUCCESS", 20, lambda: info(stored.id), 0.3)
    wait_until(lambda: info(failed.id).get("state") == "FAILURE", 20, lambda: info(failed.id), 0.3)
    assert info(stored.id)["kwargs"] == "{'key': 'k'}" and info(stored.id)["runtime"] is not None
    assert "FileNotFoundError" in info(failed.id)["exception"]
    assert "top secret" not in json.dumps([info(stored.id), json.loads(flower("/api/tasks")[1])])
    assert flower(f"/task/{stored.id}")[0] == 200 and flower("/tasks")[0] == 200 and flower("/broker")[0] == 200
    metrics = flower("/metrics")[1]
    assert f'flower_worker_online{{worker="{name}"}} 1.0' in metrics

    status, answer = flower(f"/api/worker/pool/grow/{name}", b"n=2")
    assert status == 200 and "Growing" in answer, answer
    status, answer = flower(f"/api/worker/queue/add-consumer/{name}", b"queue=extra")
    assert status == 200, answer
    status, answer = flower(f"/api/worker/pool/restart/{name}", b"")
    assert status == 403 and "Pool restarts" in answer, (status, answer)
    assert site.call("exists", "k") is True
    assert flower(f"/api/worker/shutdown/{name}", b"")[0] == 200
    assert worker.wait(20) == 0
