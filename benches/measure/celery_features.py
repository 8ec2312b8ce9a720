"""The rows about what Celery's tools and settings cost: events, remote control, waiting commands, results in Redis."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

from measure.peer import Running
from measure.setup import BENCHES, ROOT, say

WAITING = 10_000
SCRIPT = Path(__file__).with_name("celery_client.py")


class Redis:
    """A private deploy/dev-redis, apart from the one of the tests; it syncs nothing, as Debian's does by default."""

    def __init__(self):
        self._environment = {**os.environ, "DEV_REDIS_DIR": str(ROOT / "target" / "bench-redis"), "DEV_REDIS_ARGS": "--appendonly no"}

    def __enter__(self):
        self.url = self._call("start").strip()
        return self

    def __exit__(self, *_):
        self._call("stop")

    def _call(self, verb):
        command = [ROOT / "deploy" / "dev-redis", verb]
        return subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def client(bench, verb, *arguments):
    """Runs a step of the script with Celery's own client; returns the last line that it prints."""
    command = [bench.python, SCRIPT, verb, bench.broker, *map(str, arguments)]
    output = subprocess.run(command, cwd=BENCHES, stdout=subprocess.PIPE, text=True, check=True).stdout
    return output.splitlines()[-1] if output.strip() else ""


def events(bench, number, commands):
    """Stores with and without a monitor that is told of every command (`-E`)."""
    rates = {}
    order = [(), ("-E",)] if number % 2 == 0 else [("-E",), ()]
    for arguments in order:
        with bench.start(bench.peers["filestorage"], "tmpfs", arguments) as running:
            client(bench, "monitor", "on")
            running.warm_up(commands // 10)
            result = running.measure("store", commands)
            bench.report.judge("events for monitors", result)
            told = int(client(bench, "monitor", "off"))
        rates[bool(arguments)] = result["commands_per_second"]
        if bool(arguments) != (told > 0):
            bench.report.faults.append(f"with {arguments or 'no option'} {told} messages came to monitors")
    bench.report.add_feature("stores, a monitor is there", rates[False])
    bench.report.add_feature("the same with -E: × without", rates[True], rates[True] / rates[False])


def control(bench, commands):
    """Pings while 256 stores are in flight all the time."""
    with bench.start(bench.peers["filestorage"], "tmpfs") as running:
        running.warm_up(commands // 10)
        load = threading.Thread(target=running.measure, args=("store", commands))
        load.start()
        answers = []
        while load.is_alive() and len(answers) < 200:
            answers.extend(float(part) for part in client(bench, "ping", 20).split())
        load.join()
    bench.report.pings = answers


def waiting(bench, number, commands):
    """Stores before and while 10,000 commands wait for their eta."""
    with bench.start(bench.peers["filestorage"], "tmpfs") as running:
        running.warm_up(commands // 10)
        before = running.measure("store", commands)
        client(bench, "delay", running.queue, WAITING)
        during = running.measure("store", commands, first=commands)
        left = int(client(bench, "depth", running.queue))
        for result in (before, during):
            bench.report.judge("stores beside waiting commands", result)
    if left:
        bench.report.faults.append(f"{left} commands with an eta are not parked")
    client(bench, "forget")
    rates = [result["commands_per_second"] for result in (before, during)]
    bench.report.add_feature("stores, no command waits", rates[0])
    bench.report.add_feature(f"the same while {WAITING:,} commands wait for their eta: × before", rates[1], rates[1] / rates[0])


def redis(bench, number, commands):
    """Stores from a full queue: answers over the broker, in Redis, and in Redis by Celery's prefork worker."""
    with Redis() as server:
        worker, plain = bench.peers["filestorage"], bench.peers["plain"]
        backend = {"CELERY_RESULT_BACKEND": server.url}
        runs = {
            "answers over rpc": (worker, commands),
            "answers in Redis": (replace(worker, environment={**worker.environment, **backend}), commands),
            "Celery -c 2, answers in Redis": (replace(plain, environment={**plain.environment, **backend}), commands // 10),
        }
        rates = {}
        for name, (peer, count) in runs.items():
            say(f"round {number + 1}: {name}")
            rates[name] = drained(bench, peer, count, server.url)
    rpc, own, python = rates.values()
    bench.report.add_feature("stores from a full queue, answers over rpc", rpc)
    bench.report.add_feature("the same, answers in Redis: × over rpc", own, own / rpc)
    bench.report.add_feature("Celery -c 2 on plain files, answers in Redis: × the worker", python, python / own)


def drained(bench, peer, count, url):
    """Fills a queue, starts the worker, and returns how many answers a second come after the first ones."""
    place = "tmpfs" if "tmpfs" in bench.places.folders else "disk"
    running = Running(peer, bench.load, bench.broker, bench.places.fresh(place))
    kind = url if "CELERY_RESULT_BACKEND" in peer.environment else "rpc"
    client(bench, "fill", running.queue, count, kind)
    log = open(running.log, "wb")
    process = subprocess.Popen(running.command, cwd=BENCHES, env=running.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    running.process = process
    try:
        return float(client(bench, "drained", kind, count))
    finally:
        log.close()
        running.__exit__()


def run(bench, number, commands):
    """One round of all of them."""
    if "tmpfs" not in bench.places.folders:
        print("bench: no folder in memory, so the rows of Celery's features are left out", file=sys.stderr)
        return
    events(bench, number, commands)
    waiting(bench, number, commands)
    redis(bench, number, commands)
    if number == 0:
        control(bench, commands * 4)
    bench.drain_events()
