"""The rows about buckets and large values: memory by reference, large values inline, what the worker adds to a store."""

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

from measure.peer import Running
from measure.setup import ROOT, say

REFERENCE_MIB = 256
INLINE_BYTES = 8 << 20
INLINE_PEERS = ("filestorage", "uncompressed", "plain", "aiecs")
# What a store in a real bucket takes; the emulator is on this machine and shares its cores with broker and worker, so that
# near it the rates tell who needs how much of them, and only far away what a store takes longer.
AWAY_SECONDS = 0.05
PARALLEL = {"on this machine": 64, "50 ms away": 16}
WINDOW = 256


class Emulator:
    """A private deploy/dev-gcs, apart from the one of the tests."""

    def __init__(self):
        self._environment = {**os.environ, "DEV_GCS_DIR": str(ROOT / "target" / "bench-gcs")}

    def __enter__(self):
        self.url = self._call("start").strip()
        return self

    def __exit__(self, *_):
        self._call("stop")

    def bucket(self, name):
        body = json.dumps({"name": name}).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/storage/v1/b?project=bench", body, headers)).close()
        return name

    def _call(self, verb):
        command = [ROOT / "deploy" / "dev-gcs", verb]
        return subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, text=True, check=True).stdout


class Away:
    """The emulator as far away as a bucket is: the tests' proxy, which lets each request wait."""

    def __init__(self, url):
        command = [sys.executable, ROOT / "tests" / "support" / "fault_proxy.py", "--upstream", url, "--until-eof"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = self._process.stdout.readline().split()[1]
        control = self._process.stdout.readline().split()[1]
        rule = json.dumps({"action": {"delay": AWAY_SECONDS}}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{control}/__proxy/rules", rule)).close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def in_bucket(peer, url, bucket):
    """The same worker with its values in a bucket."""
    environment = {**peer.environment, "GCS_BUCKET_NAME": bucket, "STORAGE_EMULATOR_HOST": url}
    return replace(peer, environment=environment)


def by_reference(bench):
    """A value of 256 MiB from a file to the store and back; the worker's peak of resident memory is the point."""
    with Emulator() as emulator:
        worker = bench.peers["filestorage"]
        for name, peer in {
            "local": worker,
            "gcs": in_bucket(worker, emulator.url, emulator.bucket("reference")),
        }.items():
            say(f"{REFERENCE_MIB} MiB by reference: {name}")
            exchange = bench.places.fresh("disk")
            peer = replace(peer, environment={**peer.environment, "EXCHANGE_DIRECTORIES": str(exchange)})
            with bench.start(peer, "disk") as running:
                script = Path(__file__).with_name("large.py")
                command = [bench.python, script, bench.broker, running.queue, running.process.pid, exchange, REFERENCE_MIB]
                output = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True).stdout
                bench.report.add_reference(name, REFERENCE_MIB, json.loads(output))
    bench.drain_events()


def inline(bench, number, commands):
    """Values of 8 MiB inside the messages, the worker and its rivals in turns."""
    place = "tmpfs" if "tmpfs" in bench.places.folders else "disk"
    names = [name for name in INLINE_PEERS if name in bench.peers]
    turn = number % len(names)
    for name in names[turn:] + names[:turn]:
        say(f"values of 8 MiB: {name} on {place}")
        with bench.start(bench.peers[name], place) as running:
            running.warm_up(4, INLINE_BYTES)
            for operation in ("store", "retrieve"):
                # Two at a time: as many as there are processes of the Python peers.
                result = running.measure(operation, commands, window=2, size=INLINE_BYTES)
                bench.report.add_inline(name, operation, number, result)
    bench.drain_events()


def small(bench, number, stores):
    """Small stores in a bucket, by the worker and by a bare client, the same number under way; near, and 50 ms away."""
    with Emulator() as emulator:
        bucket = emulator.bucket(f"small-{number}")
        worker = bench.peers["filestorage"]
        with Away(emulator.url) as away:
            for distance, url in zip(PARALLEL, (emulator.url, away.url)):
                parallel = PARALLEL[distance]
                turns = ["bare", "worker"] if number % 2 == 0 else ["worker", "bare"]
                for name in turns:
                    say(f"small stores in a bucket {distance}: {name}")
                    if name == "bare":
                        command = [
                            bench.bare, url, "--bucket", bucket, "--prefix", f"bare-{number}-{distance[:2]}",
                            "--stores", str(stores), "--parallel", str(parallel),
                        ]  # fmt: skip
                        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                        result = json.loads(output)
                    else:
                        with Running(
                            in_bucket(worker, url, bucket), bench.load, bench.broker, bench.places.fresh("disk"),
                            ["-c", str(parallel)],
                        ) as running:  # fmt: skip
                            running.warm_up(parallel * 4)
                            result = running.measure("store", stores, window=WINDOW)
                    bench.report.add_small(distance, name, number, result)
    bench.drain_events()
