"""What a Python worker publishes after a command and what ours does, for each shape of a canvas and each option of a signature."""

import json
import re
import time
import uuid
from datetime import datetime, timedelta, timezone

import pytest

from harness import wait_until
from test_remote import python_worker

pytestmark = pytest.mark.full_rights("a Python worker declares its queues itself")
VALUE = {"n": 1, "text": "naïve"}
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)?")
LATER = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()


def sig(task="sink.a", *args, kind=None, immutable=False, kwargs=None, **options):
    return {"task": task, "args": list(args), "kwargs": kwargs or {}, "options": options, "subtask_type": kind, "immutable": immutable}


def chain(*tasks, **options):
    return sig("celery.chain", kind="chain", kwargs={"tasks": list(tasks)}, **options)


def group(*tasks, **options):
    return sig("celery.group", kind="group", kwargs={"tasks": list(tasks)}, **options)


def ids(name):
    """Options of a signature that a client has frozen; each command that is sent puts an id of its own in the place of the name."""
    return {"task_id": f"ID<{name}>", "reply_to": "REPLY"}


FROZEN = ids("first")
A, B, C = sig("sink.a", "own"), sig("sink.b", kwargs={"k": 1}), sig("sink.c", immutable=True)
STEPS = [sig("sink.last", **ids("last")), sig("sink.next", **ids("next"))]

# A member of a group whose own options stand against those of the group.
OWN = sig("sink.own", priority=2, queue="OTHER", countdown=1200, expires=1200, time_limit=8, soft_time_limit=3, shadow="own", ignore_result=True,
          link=[sig("sink.link3")], link_error=[sig("sink.error3")], headers={"own": 1}, stamped_headers=["tenant"], tenant="own", argsrepr="own",
          reply_to="REPLY", delivery_mode=1, correlation_id="own")

# An option of a signature: each is tried in a callback and in a step of a chain.
OPTIONS = {
    "no option": {},
    "task_id": {"task_id": FROZEN["task_id"]},
    "reply_to": {"reply_to": "REPLY"},
    "queue": {"queue": "OTHER"},
    "exchange and routing_key": {"exchange": "amq.direct", "routing_key": "OTHER"},
    "exchange, exchange_type, routing_key": {"exchange": "amq.direct", "exchange_type": "direct", "routing_key": "OTHER"},
    "routing_key": {"routing_key": "OTHER"},
    "priority": {"priority": 7},
    "delivery_mode": {"delivery_mode": 1},
    "serializer": {"serializer": "json"},
    "serializer msgpack": {"serializer": "msgpack"},
    "compression": {"compression": "gzip"},
    "countdown": {"countdown": 600},
    "eta": {"eta": LATER},
    "expires, seconds": {"expires": 600},
    "expires, a date": {"expires": LATER},
    "time_limit": {"time_limit": 9},
    "soft_time_limit": {"soft_time_limit": 4.5},
    "both time limits": {"time_limit": 9, "soft_time_limit": 4},
    "link": {"link": sig("sink.link")},
    "link, a list": {"link": [sig("sink.link"), sig("sink.link2")]},
    "link_error": {"link_error": sig("sink.error")},
    "link_error, a list": {"link_error": [sig("sink.error")]},
    "chain": {"chain": [sig("sink.z", **ids("z")), sig("sink.y", **ids("y"))]},
    "group_id and group_index": {"group_id": "some-group", "group_index": 3},
    "root_id and parent_id": {"root_id": "of-another", "parent_id": "of-another"},
    "shadow": {"shadow": "shown"},
    "ignore_result": {"ignore_result": True},
    "ignore_result, false": {"ignore_result": False},
    "retries": {"retries": 2},
    "replaced_task_nesting": {"replaced_task_nesting": 2},
    "headers": {"headers": {"trace": "t", "deep": {"n": [1, None]}}},
    "headers over others": {"headers": {"origin": "elsewhere", "shadow": "shown"}},
    "stamps": {"stamped_headers": ["tenant"], "tenant": ["acme", "b"]},
    "stamps, not a list": {"stamped_headers": ["tenant", "none"], "tenant": "acme"},
    "argsrepr and kwargsrepr": {"argsrepr": "(hidden)", "kwargsrepr": "{hidden}"},
    "origin": {"origin": "somebody"},
    "correlation_id": {"correlation_id": "another"},
    "message_id, type, app_id": {"message_id": "m", "type": "t", "app_id": "a"},
    "timestamp": {"timestamp": 1_700_000_000},
    "options of publishing": {"add_to_parent": False, "retry": True, "retry_policy": {"max_retries": 1}, "route_name": "x"},
    "an unknown option": {"unknown": 1},
}
# What a command carries: headers and properties of its message.
COMMAND = {
    "nothing": ({}, {}),
    "group and group_index": ({"group": "some-group", "group_index": 4}, {}),
    "root_id and parent_id": ({"root_id": "the-root", "parent_id": "the-parent"}, {}),
    "ignore_result": ({"ignore_result": True}, {}),
    "ignore_result, false": ({"ignore_result": False}, {}),
    "shadow": ({"shadow": "shown"}, {}),
    "stamps": ({"stamped_headers": ["tenant"], "stamps": {"tenant": ["acme"]}}, {}),
    "headers": ({"trace": "t"}, {}),
    "expires": ({"expires": LATER}, {}),
    "timelimit": ({"timelimit": [30, 20]}, {}),
    "argsrepr and kwargsrepr": ({"argsrepr": "(hidden)", "kwargsrepr": "{}"}, {}),
    "origin": ({"origin": "gen1@elsewhere"}, {}),
    "replaced_task_nesting": ({"replaced_task_nesting": 3}, {}),
    "retries": ({"retries": 2}, {}),
    "priority": ({}, {"priority": 5}),
    "delivery_mode": ({}, {"delivery_mode": 1}),
    "correlation_id": ({}, {"correlation_id": "another"}),
    "no reply_to": ({}, {"reply_to": None}),
}
# Shapes of what follows: embed, and whether the command fails.
SHAPES = {
    "a callback": ({"callbacks": [A]}, False),
    "an immutable callback": ({"callbacks": [sig("sink.a", "own", immutable=True)]}, False),
    "two callbacks": ({"callbacks": [A, B]}, False),
    "a chain as callback": ({"callbacks": [chain(A, B, C)]}, False),
    "a chain among callbacks": ({"callbacks": [A, chain(B, C)]}, False),
    "a group as callback": ({"callbacks": [group(A, B)]}, False),
    "a group among callbacks": ({"callbacks": [group(A, B), C]}, False),
    "a chain that begins with a group": ({"callbacks": [chain(group(A, B))]}, False),
    "a step": ({"chain": STEPS[1:]}, False),
    "two steps": ({"chain": STEPS}, False),
    "an immutable step": ({"chain": [sig("sink.next", "own", immutable=True, **ids("next"))]}, False),
    "a chain as step": ({"chain": [STEPS[0], chain(A, B)]}, False),
    "a chain with options as step": ({"chain": [STEPS[0], chain(A, B, **FROZEN, link_error=[C])]}, False),
    "a group as step": ({"chain": [group(A, B, C)]}, False),
    "a frozen group as step": ({"chain": [group(sig("sink.a", **ids("m1")), sig("sink.b", **ids("m2")), **FROZEN)]}, False),
    "a group with chains as step": ({"chain": [group(A, chain(B, C), chain())]}, False),
    "a group of groups as step": ({"chain": [group(A, group(B, C))]}, False),
    "an empty group as step": ({"chain": [group()]}, False),
    "callbacks and steps": ({"callbacks": [A, B], "chain": STEPS, "errbacks": [C]}, False),
    "map": ({"callbacks": [sig("celery.map", kwargs={"task": sig("sink.a"), "it": [1, 2]}, immutable=True)]}, False),
    "failed: an errback": ({"errbacks": [A]}, True),
    "failed: an immutable errback": ({"errbacks": [sig("sink.a", "own", immutable=True)]}, True),
    "failed: two errbacks": ({"errbacks": [A, B]}, True),
    "failed: an errback with options": ({"errbacks": [sig("sink.a", priority=3, queue="OTHER", shadow="shown", **FROZEN)]}, True),
    "failed: a group as errback": ({"errbacks": [group(A, B)]}, True),
    "failed: callbacks and steps": ({"callbacks": [A], "chain": STEPS}, True),
    "failed: steps and an errback": ({"chain": STEPS, "errbacks": [A]}, True),
    "failed: a chain as step": ({"chain": [STEPS[0], chain(sig("sink.a", **ids("a")), sig("sink.b", **ids("b")))]}, True),
    "failed: steps without ids": ({"chain": [B, A]}, True),
}


def cases(inherited):
    if inherited:
        for kind in ({"callbacks": [sig(priority=2), B], "chain": STEPS}, {"callbacks": [sig(priority=2)]}, {"chain": [sig(priority=2)]}):
            yield f"inherited priority: {', '.join(kind)}", {}, {"priority": 5}, kind, False
        for kind in ("callbacks", "chain"):
            yield f"inherited priority: {kind}: group with a priority", {}, {"priority": 5}, {kind: [group(A, OWN, chain(B, C), priority=2)]}, False
        yield "inherited priority: errbacks", {}, {"priority": 5}, {"errbacks": [A, sig(priority=2)]}, True
        return
    for name, (headers, properties) in COMMAND.items():
        for what, embed, fails in [("", {"callbacks": [A], "chain": STEPS}, False), (", failed", {"chain": STEPS, "errbacks": [A]}, True)]:
            yield f"command with {name}{what}", headers, properties, embed, fails
    for name, (embed, fails) in SHAPES.items():
        yield name, {}, {}, embed, fails
    for name, options in OPTIONS.items():
        yield f"callback with {name}", {}, {}, {"callbacks": [sig("sink.a", 1, kwargs={"k": "v"}, **options)]}, False
        yield f"step with {name}", {}, {}, {"chain": [sig("sink.a", 1, kwargs={"k": "v"}, **options)]}, False
        if name not in ("chain",):
            yield f"member with {name}", {}, {}, {"chain": [group(sig("sink.a", **options), B)]}, False
        for kind, embed in [("callbacks", lambda followed: {"callbacks": [followed]}), ("step", lambda followed: {"chain": [followed]}),
                            ("step before others", lambda followed: {"chain": [STEPS[0], followed]})]:
            yield f"{kind}: group with {name}", {}, {}, embed(group(A, OWN, chain(B, C), **options)), False


class Command:
    """One command that was sent, and what came of it: answers, and the messages in each queue in their order."""

    def __init__(self, side):
        self.side, self.id, self.sent, self.frozen = side, str(uuid.uuid4()), time.time(), {}
        self.found = {"answer": [], "to the default queue": [], "to the queue OTHER": []}

    def count(self):
        return sum(map(len, self.found.values()))

    def place(self, text):
        """What stands in a message of this command instead of a placeholder."""
        if text.startswith("ID<"):
            return self.frozen.setdefault(text, str(uuid.uuid4()))
        return {"REPLY": self.side.reply, "OTHER": self.side.other}[text]

    def shown(self, by_task):
        """The messages without what differs each time: ids are numbered as they come, times are told from the sending on.

        `by_task` puts the messages of each queue in the order of their tasks.
        """
        numbers, side = {}, self.side

        def tidy(value, key=None):
            if isinstance(value, dict):
                return {name: tidy(member, name) for name, member in sorted(value.items())}
            if isinstance(value, (list, tuple)):
                return [tidy(member, key) for member in value]
            if isinstance(value, datetime):
                return value.isoformat()
            if not isinstance(value, str):
                return value
            frozen = [(id, name) for name, id in self.frozen.items()]
            for text, name in [(LATER, "LATER"), (self.id, "ID"), (side.reply, "REPLY"), (side.default, "DEFAULT"), (side.other, "OTHER"), *frozen]:
                value = value.replace(text, name)
            value = ISO.sub(lambda at: f"T+{round((datetime.fromisoformat(at[0]).timestamp() - self.sent) / 60) * 60}", value)
            value = UUID.sub(lambda id: numbers.setdefault(id[0], f"id {len(numbers) + 1}"), value)
            if key == "expiration":
                # Of a date, what is left when the message is made, up to a minute after the command was sent.
                is_date = abs(self.sent + int(value) / 1000 - datetime.fromisoformat(LATER).timestamp()) < 60
                value = "LATER" if is_date else value
            if key == "origin" and "@" in value and "elsewhere" not in value:
                value = "NODE"
            return value

        def one(message):
            headers = message.properties["application_headers"]
            properties = {key: value for key, value in message.properties.items() if key != "application_headers"}
            body = message.json
            if body is None:
                body = f"{len(message.raw)} bytes that are no JSON"
            elif isinstance(body, dict) and isinstance(body.get("result"), dict) and "exc_type" in body["result"]:
                body = {**body, "result": {**body["result"], "exc_message": "MESSAGE"}, "traceback": type(body["traceback"]).__name__}
            where = [message.delivery_info["exchange"], message.delivery_info["routing_key"]]
            return tidy({"address": where, "properties": properties, "headers": headers, "body": body})

        # Answers are told by their task: of several, the order is not promised.
        names = {id: name for name, id in self.frozen.items()}
        answers = sorted(self.found["answer"], key=lambda message: names.get(message.json["task_id"], ""))
        found = {name: sorted(messages, key=lambda message: message.headers["task"] if by_task else 0) for name, messages in self.found.items() if name != "answer"}
        return {name: [one(message) for message in messages] for name, messages in {"answer": answers, **found}.items()}


class Side:
    """One of the two workers: what is sent to it, and what it publishes."""

    def __init__(self, site, name, queue):
        self.site, self.name, self.queue, self.commands = site, name, queue, []
        self.default, self.other = f"{name}-default", f"{name}-other"
        for declared in (self.default, self.other):
            site.raw.declare(declared)
        site.raw.channel.queue_bind(self.other, "amq.direct", self.other)
        self.reply = site.raw.reply_queue()

    def send(self, headers, properties, embed, fails):
        """Sends a command that returns VALUE, or fails with a ValueError."""
        command = Command(self)
        whole = {"callbacks": None, "errbacks": None, "chain": None, "chord": None, **embed}
        whole = json.loads(re.sub(r"REPLY|OTHER|ID<\w+>", lambda match: command.place(match[0]), json.dumps(whole)))
        ours = {True: ("filestorage.retrieve", ["../bad"]), False: ("filestorage.retrieve", ["value"])}
        theirs = {True: ("peer.fail", []), False: ("peer.echo", [VALUE])}
        task, args = (ours if self.name == "ours" else theirs)[fails]
        properties = {"correlation_id": command.id, "reply_to": self.reply, "content_type": "application/json",
                      "content_encoding": "utf-8", **properties}
        properties = {key: value for key, value in properties.items() if value is not None}
        self.site.raw.publish(json.dumps([args, {}, whole]), {"task": task, "id": command.id, "lang": "py", **headers}, self.queue, **properties)
        self.commands.append(command)

    def take(self):
        """Hands each message that has come to its command; returns their number."""
        of = {id: command for command in self.commands for id in (command.id, *command.frozen.values())}
        taken = 0
        for name, queue in [("answer", self.reply), ("to the default queue", self.default), ("to the queue OTHER", self.other)]:
            for message in self.site.raw.drain(queue):
                taken += 1
                of[message.json["task_id"] if name == "answer" else message.headers["parent_id"]].found[name].append(message)
        return taken


def differences(ours, theirs, path=""):
    """Paths at which two values differ, with both."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            yield from differences(ours.get(key, "absent"), theirs.get(key, "absent"), f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (own, other) in enumerate(zip(ours, theirs)):
            yield from differences(own, other, f"{path}/{index}")
    elif type(ours) is not type(theirs) or ours != theirs:
        yield path, ours, theirs


# Where ours differs: a pattern of cases, one of paths, and the reason.
REASONS = [
    ("a chain that begins with a group", ".*(body/0|argsrepr)", "Celery drops the result before the group, ours hands it on"),
    ("a group of groups as step", ".*/group_index", "Celery counts each inner group from 0 in the same group, ours counts once"),
    ("map", ".*/headers/(argsrepr|ignore_result)", "a Python worker knows the task celery.map and writes its defaults"),
    ("failed: a chain as step", "/answer", "ours also tells those who wait for a task inside the chain"),
    (".* with serializer msgpack", ".*/(body|content_type|content_encoding)", "what ours sends on is JSON, which every worker reads"),
    (".* with compression", ".*/(body|headers/compression)", "what ours sends on is not compressed"),
    ("step with chain", ".*(/chain|/reply_to)", "Celery drops the steps in the option of a step, ours runs them"),
    (".* with stamps, not a list", ".*", "a stamp that is named and missing fails the command in Celery, ours leaves it out"),
]


def reason(case, path):
    return next((why for cases, paths, why in REASONS if re.fullmatch(cases, case) and re.fullmatch(paths, path)), None)


@pytest.mark.parametrize("inherited", [False, True], ids=["", "priorities are inherited"])
def test_what_follows_is_what_a_python_worker_publishes(site, inherited, capsys, monkeypatch):
    monkeypatch.setenv("PEER_QUEUE", "theirs-default")
    monkeypatch.setenv("PEER_INHERIT_PRIORITY", "1" if inherited else "")
    site.raw.declare("peer")
    site.start(CELERY_TASK_DEFAULT_QUEUE="ours-default", CELERY_RESULT_PERSISTENT="false", CELERY_TASK_INHERIT_PARENT_PRIORITY=inherited)
    site.call("store", "value", VALUE)
    rows, unexplained = [], []
    with python_worker(site):
        sides = [Side(site, "ours", "filestorage"), Side(site, "theirs", "peer")]
        names = []
        for case, *command in cases(inherited):
            names.append(case)
            for side in sides:
                side.send(*command)
        began = quiet = time.monotonic()
        while time.monotonic() < quiet + 2:
            if sum(side.take() for side in sides) or not all(one.count() for side in sides for one in side.commands):
                quiet = time.monotonic()
            assert quiet < began + 90, [(one.side.name, case) for side in sides for case, one in zip(names, side.commands) if not one.count()]
            time.sleep(0.1)
        for case, own, other in zip(names, *(side.commands for side in sides)):
            why = []
            # A Python worker publishes the tasks and the chains of a group over two connections, in any order.
            by_task = "group with" in case
            for path, ours, theirs in differences(own.shown(by_task), other.shown(by_task)):
                known = reason(case, path)
                if known is None:
                    unexplained.append(f"{case}: {path}: ours {json.dumps(ours)[:300]}, a Python worker's {json.dumps(theirs)[:300]}")
                elif known not in why:
                    why.append(known)
            rows.append((case, "; ".join(why) or "same", (own.count(), other.count())))
    with capsys.disabled():
        print()
        for case, same, (own, other) in rows:
            print(f"  {case:<52}{own:>2} {other:>2} {same}")
    assert not unexplained, "\n".join(unexplained)
