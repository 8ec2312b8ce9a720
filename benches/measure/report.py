"""The tables: medians over the rounds, and ratios taken within each round."""

import os
import platform
from collections import defaultdict
from statistics import median

from measure.buckets import PARALLEL

OPERATIONS = ("store", "retrieve", "delete")
RIVALS = (("limit", "× limit"), ("plain", "× plain files"), ("plain-fsync", "× plain, fsync"), ("aiecs", "× aiecs"))


class Report:
    """Collects measurements and prints them as Markdown."""

    def __init__(self, peers):
        self.peers = peers
        self.results = defaultdict(dict)
        self.starts = defaultdict(list)
        self.sweep = defaultdict(list)
        self.references = {}
        self.inline = defaultdict(dict)
        self.small = defaultdict(dict)
        self.many = defaultdict(dict)
        self.codecs = []
        self.features = defaultdict(list)
        self.pings = []
        self.faults = []

    def add(self, place, peer, operation, round_number, result):
        self.results[place, peer, operation][round_number] = result
        self.judge(f"{peer} {operation} on {place}", result)

    def add_start(self, peer, seconds, idle_bytes, alone_ms):
        self.starts[peer].append((seconds, idle_bytes, alone_ms))

    def add_sweep(self, name, result):
        self.sweep[name].append(result)
        self.judge(f"store with {name}", result)

    def add_reference(self, place, mebibytes, result):
        self.references[place] = (mebibytes, result)
        if not result["same"]:
            self.faults.append(f"{mebibytes} MiB by reference through {place} came back as something else")

    def add_inline(self, peer, operation, round_number, result):
        self.inline[peer, operation][round_number] = result
        self.judge(f"{peer} {operation} of 8 MiB", result)

    def add_many(self, place, name, round_number, result):
        self.many[place, name][round_number] = result
        self.judge(f"{name} on {place}, round {round_number + 1}", result)

    def add_small(self, distance, name, round_number, result):
        self.small[distance, name][round_number] = result
        if name != "bare":
            self.judge(f"stores in a bucket {distance}", result)

    def add_feature(self, name, rate, ratio=None):
        self.features[name].append((rate, ratio))

    def judge(self, what, result):
        if result["errors"] or result["unexpected"]:
            self.faults.append(
                f"{what}: {result['errors']} failed, {result['unexpected']} answered twice or unasked;"
                f" first failure: {result['first_failure']}"
            )

    def print(self, facts):
        print("\n".join(facts))
        for place in ("tmpfs", "disk"):
            self._print_place(place)
        self._print_starts()
        self._print_sweep()
        self._print_references()
        self._print_inline()
        self._print_many()
        self._print_small()
        self._print_codecs()
        self._print_features()
        self._print_load()
        for fault in self.faults:
            print(f"\n**FAULT** {fault}")

    def _print_place(self, place):
        measured = {name for where, name, _ in self.results if where == place}
        names = [name for name in self.peers if name in measured]
        if not names:
            return
        rivals = [(rival, title) for rival, title in RIVALS if rival in names]
        print(f"\n### 200-byte values on {place}\n")
        row(["", "", "commands/s", *(title for _, title in rivals), "p50 ms", "p99 ms", "CPU s / 1,000", "memory MiB"])
        row(["---", "---", *["--:"] * (5 + len(rivals))])
        for operation in OPERATIONS:
            for name in names:
                rounds = self.results[place, name, operation]
                if not rounds:
                    continue

                def middle(field):
                    return median(result[field] for result in rounds.values())

                row([
                    operation,
                    self.peers[name].title,
                    f"{middle('commands_per_second'):,.0f}",
                    *(self._ratio(place, name, rival, operation) for rival, _ in rivals),
                    f"{middle('p50_ms'):.1f}",
                    f"{middle('p99_ms'):.1f}",
                    f"{middle('cpu_seconds_per_1000'):.3f}",
                    f"{middle('memory_bytes') / 2**20:.1f}",
                ])  # fmt: skip

    def _ratio(self, place, name, rival, operation):
        own, other = self.results[place, name, operation], self.results[place, rival, operation]
        common = own.keys() & other.keys()
        if name == rival or not common:
            return ""
        ratio = median(own[number]["commands_per_second"] / other[number]["commands_per_second"] for number in common)
        return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"

    def _print_starts(self):
        if not self.starts:
            return
        print("\n### Start and idle\n")
        row(["", "start to first answer s", "idle memory MiB", "one store at a time, p50 ms"])
        row(["---", "--:", "--:", "--:"])
        for name, starts in self.starts.items():
            seconds, idle, alone = (median(column) for column in zip(*starts))
            row([self.peers[name].title, f"{seconds:.3f}", f"{idle / 2**20:.1f}", f"{alone:.2f}"])

    def _print_sweep(self):
        if not self.sweep:
            return
        print("\n### Durable stores on disk by commands in flight\n")
        row(["", "commands/s", "p50 ms", "p99 ms"])
        row(["---", "--:", "--:", "--:"])
        for name, results in self.sweep.items():
            rate, p50, p99 = (
                median(result[field] for result in results) for field in ("commands_per_second", "p50_ms", "p99_ms")
            )
            row([name, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}"])

    def _print_references(self):
        if not self.references:
            return
        print("\n### A large value by reference\n")
        row(["", "store MiB/s", "retrieve MiB/s", "peak of resident memory MiB"])
        row(["---", "--:", "--:", "--:"])
        for place, (mebibytes, result) in self.references.items():
            rates = (mebibytes / result[operation] for operation in ("store", "retrieve"))
            peak = result["peak_bytes"] / 2**20
            row([f"{mebibytes} MiB, {place}", *(f"{rate:,.0f}" for rate in rates), f"{peak:.1f}"])

    def _print_inline(self):
        if not self.inline:
            return
        rivals = [name for name in ("plain", "aiecs") if (name, "store") in self.inline]
        print("\n### Values of 8 MiB inside messages, two at a time\n")
        row(["", "", "commands/s", "p50 ms", "CPU s / command", *(f"× {name}" for name in rivals)])
        row(["---", "---", *["--:"] * (3 + len(rivals))])
        for (name, operation), rounds in sorted(self.inline.items(), key=lambda item: item[0][1], reverse=True):
            own = rounds.values()
            row([
                operation,
                self.peers[name].title,
                f"{median(result['commands_per_second'] for result in own):.1f}",
                f"{median(result['p50_ms'] for result in own):.0f}",
                f"{median(result['cpu_seconds_per_1000'] for result in own) / 1000:.3f}",
                *(
                    f"{self._times(self.inline, (name, operation), (rival, operation)):.1f}"
                    if name in ("filestorage", "uncompressed") and (rival, operation) in self.inline
                    else ""
                    for rival in rivals
                ),
            ])  # fmt: skip

    @staticmethod
    def _times(results, own, other):
        """The median over the rounds of how much faster the one was."""
        own, other = results[own], results[other]
        return median(
            own[number]["commands_per_second"] / other[number]["commands_per_second"] for number in own.keys() & other.keys()
        )

    def _print_many(self):
        if not self.many:
            return
        print("\n### Stores of 200 bytes, 1,000 in a command and one in a command\n")
        row(["", "values/s", "times single", "CPU s / 1,000 commands"])
        row(["---", "--:", "--:", "--:"])
        for (place, name), rounds in sorted(self.many.items(), reverse=True):
            values = 1_000 if name == "many" else 1
            ratio = f"{values * self._times(self.many, (place, name), (place, 'single')):.2f}" if name == "many" else ""
            rate = values * median(result["commands_per_second"] for result in rounds.values())
            cpu = median(result["cpu_seconds_per_1000"] for result in rounds.values())
            row([f"{name}, {place}", f"{rate:,.0f}", ratio, f"{cpu:.3f}"])

    def _print_small(self):
        if not self.small:
            return
        print("\n### 200-byte stores in an emulated bucket\n")
        row(["bucket", "", "stores/s", "worker / bare", "CPU s / 1,000"])
        row(["---", "---", "--:", "--:", "--:"])
        for (distance, name), rounds in sorted(self.small.items(), reverse=True, key=lambda item: item[0][0]):
            ratio = f"{self._times(self.small, (distance, 'worker'), (distance, 'bare')):.2f}" if name == "worker" else ""
            row([
                f"{distance}, {PARALLEL[distance]} under way",
                {"bare": "bare client", "worker": "filestorage"}[name],
                f"{median(result['commands_per_second'] for result in rounds.values()):,.0f}",
                ratio,
                f"{median(result['cpu_seconds_per_1000'] for result in rounds.values()):.3f}",
            ])  # fmt: skip

    def _print_codecs(self):
        if not self.codecs:
            return
        print("\n### Codecs alone, JSON records, nothing stored\n")
        row(["bytes of a value", "codec", "stored", "encode, MB a CPU second", "decode, MB a CPU second", "encode, CPU µs", "decode, CPU µs"])
        row(["--:", "---", "--:", "--:", "--:", "--:", "--:"])
        for result in self.codecs:
            halves = [result[half] for half in ("encode", "decode")]
            rates = [f"{half['megabytes_per_cpu_second']:,.0f}" for half in halves]
            times = [f"{half['cpu_microseconds']:,.0f}" for half in halves]
            share = f"{result['stored'] / result['size']:.1%}"
            row([f"{result['size']:,}", result["codec"], share, *rates, *times])

    def _print_features(self):
        if self.features:
            print("\n### Celery's features, 200-byte stores on tmpfs\n")
            row(["", "stores/s", "times the row named"])
            row(["---", "--:", "--:"])
        for name, rounds in self.features.items():
            ratios = [ratio for _, ratio in rounds if ratio is not None]
            row([name, f"{median(rate for rate, _ in rounds):,.0f}", f"{median(ratios):.2f}" if ratios else ""])
        if self.pings:
            longest, middle = max(self.pings), median(self.pings)
            print(f"\n`celery control ping` with 256 stores in flight: {len(self.pings)} answers, median {middle:.0f} ms, longest {longest:.0f} ms.")

    def _print_load(self):
        fast = [
            result["client_cpu_seconds"] / result["commands"]
            for (_, name, _), rounds in self.results.items()
            if not self.peers[name].slow
            for result in rounds.values()
        ]
        if fast:
            print(f"\nThe load generator cost {median(fast) * 1e6:.1f} µs of CPU a command.")


def row(cells):
    print("| " + " | ".join(cells) + " |")


def machine(disk):
    """Processor, cores, major version of the kernel and the file system of the disk folder, for the head of the report."""
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    with open("/proc/self/mounts") as file:
        mounts = [line.split()[1:3] for line in file]
    _, kind = max((mount for mount in mounts if disk.is_relative_to(mount[0])), key=lambda mount: len(mount[0]))
    kernel = platform.release().partition(".")[0]
    return f"{models[0] if models else 'processor unknown'}, {os.cpu_count()} cores, Linux {kernel}, disk on {kind}"
