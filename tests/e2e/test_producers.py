"""Producers of other times and languages: Celery from 4.4 on, both versions of the protocol, and AMQP without Celery."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients import CLIENTS, environment
from harness import ROOT

HERE = Path(__file__).parent
pytestmark = pytest.mark.full_rights("control and inspect are not for producers with the least rights")


@pytest.fixture(scope="module")
def outcomes(shared):
    """What came of every client with every protocol, all of which ran at once; the text of a fault where there is no outcome."""

    def run(release, protocol):
        try:
            python = environment(release)
        except RuntimeError as error:
            return str(error)
        env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONIOENCODING": "utf-8"}
        command = [python, "-W", "ignore", str(HERE / "producer.py"), shared.broker.url(shared.vhost), str(protocol)]
        done = subprocess.run([*command, f"{release}/{protocol}"], env=env, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, f"Celery {release}, protocol {protocol}:\n{done.stderr[-3000:]}\n{shared.workers[0].log()[-2000:]}"
        return json.loads(done.stdout)

    pairs = [(release, protocol) for release in CLIENTS for protocol in (1, 2)]
    with ThreadPoolExecutor(len(pairs)) as pool:
        return {pair: pool.submit(run, *pair) for pair in pairs}


@pytest.mark.parametrize("protocol", [1, 2])
@pytest.mark.parametrize("release", CLIENTS)
def test_a_celery_client_of_any_year_is_served(outcomes, release, protocol, capsys):
    done = outcomes[release, protocol].result()
    if isinstance(done, str):
        pytest.skip(done)
    key = f"{release}/{protocol}"
    with capsys.disabled():
        print(f"\n  Celery {done.pop('celery')}, kombu {done.pop('kombu')}, protocol {protocol}: {', '.join(done)}")
    assert done == {
        "store": f"{key}/text",
        "text": "naïve ☃",
        "bytes": ["bytes", True],
        "none": [True, None],
        "error": ["FAILURE", "builtins", "FileNotFoundError", [2, "No such file or directory"]],
        "chain": [f"{key}/chained", "naïve ☃"],
        "ignored": "silent",
        "callback": "called",
        "ping": [{"ok": "pong"}],
        "countdown": [f"{key}/later", True],
        "revoke": ["REVOKED", "celery.exceptions", "TaskRevokedError", ["revoked"], False],
    }


def test_a_ruby_program_needs_no_celery(shared):
    needed = subprocess.run([str(ROOT / "deploy" / "need"), "bunny"], capture_output=True, text=True, timeout=300, check=False)
    if needed.returncode != 0:
        pytest.skip(f"no producer in Ruby: {needed.stderr.strip()}")
    command = ["ruby", str(HERE / "producer.rb"), shared.broker.url(shared.vhost), "ruby"]
    done = subprocess.run(command, env={**os.environ, "LANG": "C.UTF-8"}, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    result = lambda name: answers[name]["result"]
    assert [answer["status"] for name, answer in answers.items() if "error" not in name] == ["SUCCESS"] * 5
    assert (result("store")["key"], result("store, protocol 1")["key"]) == ("ruby/two", "ruby/one")
    assert (result("retrieve"), result("headers")) == ("value", True)
    assert result("retrieve, protocol 1") == {"n": 2**70, "text": "ruby ♦"}
    assert shared.call("stat", "ruby/two")["metadata"] == {"from": "ruby"}
    assert answers["error"]["status"] == answers["error, protocol 1"]["status"] == "FAILURE"
    assert result("error")["exc_type"] == "FileNotFoundError" and result("error")["exc_message"][2] == "ruby/missing"
    assert (result("error, protocol 1")["exc_type"], result("error, protocol 1")["exc_module"]) == ("ValueError", "builtins")
