"""The client's own book on what it sent and what it was answered, and the judgement on it.

Each key is a register. A write holds from the moment it was sent; it is over once another write, sent after the first was
answered, has been answered itself. What a read may say are the writes that were sent before its answer and not over when
it was sent; each of its answers is judged by its own time. A write whose publish was not confirmed may happen at any time
until it is answered, so it is never over before.
All times are those of one clock, the client's.

A message is known by a correlation id of its own. Its task id may have been used before, with another body, as people use ids
again: each message is judged by its own id and body, so one that is given another's answer is seen.
"""

from __future__ import annotations

import base64
import json
import math
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import google_crc32c

ABSENT = type("Absent", (), {"__repr__": lambda self: "nothing"})()
UNKNOWN = type("Unknown", (), {"__repr__": lambda self: "no usable answer"})()
WRITES = ("store", "delete")


def stored_bytes(value):
    """The bytes that a bucket must hold for a value."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def checksum(value):
    """The checksum as receipts write it."""
    return "crc32c:" + base64.b64encode(google_crc32c.Checksum(stored_bytes(value)).digest()).decode()


@dataclass
class Answer:
    """One reply as it came; `again` says that the broker delivered this very message before."""

    at: float
    status: str
    result: object
    again: bool = False

    def same(self, other):
        return self.status == other.status and repr(self.result) == repr(other.result)


@dataclass
class Command:
    """One message: what was asked, when, whether the broker confirmed it, and every reply that came.

    `id` is its correlation id, `task` the task id where that is another.
    """

    id: str
    op: str
    key: str  # the prefix, for list_keys
    value: object
    sent: float
    confirmed: bool = False
    answers: list = field(default_factory=list)
    task: str | None = None

    @property
    def task_id(self):
        return self.task or self.id

    @property
    def writes(self):
        return self.op in WRITES

    @property
    def first(self):
        return self.answers[0] if self.answers else None

    @property
    def ended(self):
        """When the effect was certain: at the first answer, if that was a success."""
        return self.first.at if self.first and self.first.status == "SUCCESS" else math.inf

    @property
    def answered(self):
        return self.first.at if self.first else math.inf


BEGINNING = Command("beginning", "delete", "", ABSENT, -math.inf, True, [Answer(-math.inf, "SUCCESS", True)])


class Ledger:
    """Every command of one run; may be written by several threads."""

    def __init__(self):
        self.commands = {}
        self.strangers = []  # answers to messages that nobody sent, or that bear another task id
        self._lock = threading.Lock()

    def send(self, command):
        with self._lock:
            self.commands[command.id] = command

    def confirm(self, id):
        with self._lock:
            self.commands[id].confirmed = True

    def answer(self, id, at, status, result, again=False, task=None):
        """Notes a reply; returns its command, or None when nobody asked."""
        with self._lock:
            command = self.commands.get(id)
            if command is None:
                self.strangers.append((id, status))
            elif task not in (None, command.task_id):
                self.strangers.append((f"{id} as task {task} instead of {command.task_id}", status))
            else:
                command.answers.append(Answer(at, status, result, again))
            return command

    def snapshot(self):
        with self._lock:
            return list(self.commands.values())

    def waiting(self):
        """The confirmed commands that have no answer."""
        return [command for command in self.snapshot() if command.confirmed and not command.answers]

    def answered(self):
        return sum(1 for command in self.snapshot() if command.answers)

    def keys(self):
        """Every key that was written or may have been."""
        return sorted({command.key for command in self.snapshot() if command.writes})

    def judge(self, legal_errors=frozenset()):
        return Verdict(self.snapshot(), self.strangers, legal_errors)


class Verdict:
    """What is to be said of a run. `lost`, `doubled`, `wrong` and `unanswered` are lists of sentences: empty is good.

    `legal_errors` are those that a read may answer under the fault; no write may fail.
    """

    def __init__(self, commands, strangers, legal_errors):
        self.commands = commands
        self.legal_errors = legal_errors
        self.histories = defaultdict(lambda: [BEGINNING])
        for command in commands:
            if command.writes:
                self.histories[command.key].append(command)
        self.lost, self.doubled, self.unanswered = [], [], []
        self.wrong = [f"answer {status} to {id}, which nobody sent" for id, status in strangers]
        self.repeats = 0
        self.errors = Counter()
        for command in commands:
            self._judge(command)

    def _judge(self, command):
        if not command.answers:
            if command.confirmed:
                self.unanswered.append(f"{command.op} {command.key} ({command.id}) was confirmed and never answered")
            return
        for other in command.answers[1:]:
            if command.writes and not command.first.same(other):
                self.doubled.append(f"{command.op} {command.key} ({command.id}): {brief(command.first)}, then {brief(other)}")
            elif not other.again:
                self.repeats += 1
        # A write was done once, whatever was answered how often. A read that runs again may see more, and is judged again.
        for answer in command.answers[:1] if command.writes else command.answers:
            fault = self._fault(command, answer)
            if fault:
                self.wrong.append(f"{command.op} {command.key} ({command.id}) {fault}")

    def _fault(self, command, answer):
        """What is wrong with an answer; None when nothing is."""
        if answer.status == "SUCCESS":
            return getattr(self, f"_{command.op}")(command, answer)
        error = answer.result.get("exc_type") if isinstance(answer.result, dict) else repr(answer.result)
        self.errors[error] += 1
        return f"answered {brief(answer)}" if command.writes or error not in self.legal_errors else None

    def legal(self, key, sent=math.inf, answered=math.inf):
        """The values that a read of the key may give which was sent and answered at these times."""
        writes = self.histories.get(key, [BEGINNING])
        done = [other for other in writes if other.ended <= sent]
        return [
            write.value
            for write in writes
            if write.sent < answered and not any(other is not write and other.sent >= write.ended for other in done)
        ]

    def _legal_at(self, command, answer, key=None):
        return self.legal(command.key if key is None else key, command.sent, answer.at)

    def _store(self, command, answer):
        receipt = answer.result
        if not isinstance(receipt, dict):
            return f"answered {receipt!r} instead of a receipt"
        expected = {"key": command.key, "size": len(stored_bytes(command.value)), "checksum": checksum(command.value)}
        given = {name: receipt.get(name) for name in expected}
        return None if given == expected else f"has a receipt that says {given}, not {expected}"

    def _delete(self, command, answer):
        return None if answer.result is True else f"answered {answer.result!r} instead of True"

    def _retrieve(self, command, answer):
        legal = self._legal_at(command, answer)
        return None if any(same(answer.result, one) for one in legal) else f"gave {cut(answer.result)}, legal were {cut(legal)}"

    def _read_back(self, command, answer):
        return None  # `settle` compares it

    def _exists(self, command, answer):
        legal = {value is not ABSENT for value in self._legal_at(command, answer)}
        known = isinstance(answer.result, bool) and answer.result in legal
        return None if known else f"answered {answer.result!r}, legal were {legal}"

    def _stat(self, command, answer):
        receipt, legal = answer.result, self._legal_at(command, answer)
        if receipt is None:
            return None if ABSENT in legal else f"found nothing, legal were {cut(legal)}"
        sums = {checksum(value) for value in legal if value is not ABSENT}
        return None if receipt.get("checksum") in sums else f"found {cut(receipt)}, legal were {cut(legal)}"

    def _list_keys(self, command, answer):
        faults, listed = [], answer.result
        for key in list(self.histories):
            if key.startswith(command.key):
                legal = {value is not ABSENT for value in self._legal_at(command, answer, key)}
                if (key in listed) not in legal:
                    faults.append(f"{'names' if key in listed else 'lacks'} {key}")
        faults += [f"names {key}, which nobody wrote" for key in listed if key not in self.histories]
        if listed != sorted(listed):
            faults.append("is not sorted")
        return f"gave a list that {', '.join(faults[:5])}" if faults else None

    def settle(self, key, value, where):
        """Compares what a key holds in the end, when no write is under way, with what it must hold."""
        if value is UNKNOWN:
            self.lost.append(f"{key} could not be read from {where}")
            return
        legal = self.legal(key)
        if any(same(value, one) for one in legal):
            return
        known = value in (ABSENT, None) or any(same(value, write.value) for write in self.histories[key])
        (self.lost if known else self.wrong).append(f"{key} in {where} is {cut(value)}, must be {cut(legal)}")

    def settle_bytes(self, key, data, where):
        """The same for a place that holds bytes; None is nothing."""
        found = ABSENT if data is None else data
        legal = [value if value is ABSENT else stored_bytes(value) for value in self.legal(key)]
        if found in legal:
            return
        ever = [stored_bytes(write.value) for write in self.histories[key] if write.value is not ABSENT]
        known = found is ABSENT or found in ever
        (self.lost if known else self.wrong).append(f"{key} in {where} is {cut(found)}, must be {cut(legal)}")

    def numbers(self, since=-math.inf, until=math.inf):
        """Sums, the longest wait, the longest pause between two answers, and answers a second, of what was sent between."""
        run = [command for command in self.commands if since <= command.sent <= until]
        times = sorted(command.answered for command in run if command.answers)
        begun = min((command.sent for command in run), default=0.0)
        waits = [command.answered - command.sent for command in run if command.answers]
        gaps = [late - early for early, late in zip([begun, *times], times)]
        pending = [c for c in run if c.op == "store" and c.first and isinstance(c.first.result, dict) and c.first.result.get("pending_sync")]
        return {
            "sent": len(run),
            "confirmed": sum(command.confirmed for command in run),
            "lost": len(self.lost),
            "doubled": len(self.doubled),
            "wrong": len(self.wrong),
            "unanswered": len(self.unanswered),
            "repeats": self.repeats,
            "pending": len(pending),
            "wait": max(waits, default=0.0),
            "pause": max(gaps, default=0.0),
            "rate": len(times) / (times[-1] - begun) if times and times[-1] > begun else 0.0,
        }

    def faults(self):
        return [*self.lost, *self.doubled, *self.wrong, *self.unanswered]


def same(value, legal):
    """Equal in value and type; what a client is given for nothing is None."""
    if legal is ABSENT:
        return value is ABSENT or value is None
    return type(value) is type(legal) and value == legal


def cut(value, length=120):
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters)"


def brief(answer):
    return f"{answer.status} {cut(answer.result)}"


COLUMNS = (
    ("fault", "{:<44}"), ("sent", "{:>6}"), ("confirmed", "{:>9}"), ("lost", "{:>5}"), ("doubled", "{:>7}"), ("wrong", "{:>5}"),
    ("unanswered", "{:>10}"), ("repeats", "{:>7}"), ("pending", "{:>7}"), ("wait", "{:>7.1f}"), ("pause", "{:>7.1f}"), ("rate", "{:>6.0f}"),
)  # fmt: skip
TITLES = {"wait": "wait s", "pause": "pause s", "rate": "rate/s"}


def table(rows):
    """Lines of a table: a row is the dict that `numbers` gives, and the fault."""
    head = "  ".join(form.replace(".1f", "").replace(".0f", "").format(TITLES.get(name, name)) for name, form in COLUMNS)
    return [head, *("  ".join(form.format(row[name]) for name, form in COLUMNS) for row in rows)]
