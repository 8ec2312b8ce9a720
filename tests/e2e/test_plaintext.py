"""With encryption on, a worker killed in the middle leaves no value, no metadata and no key anywhere that it writes to."""

import base64
import json
import os
import subprocess
import threading
import time
import uuid

import pytest
from kombu.utils.json import dumps

from buckets import BucketSite, GcsServer
from harness import BINARY, DEAD, QUEUE, Raw, Site, events_of, failure, wait_until

KEYS = [os.urandom(32) for _ in range(2)]
MIB = 1 << 20


def forms(secret):
    """The bytes as they are, in hexadecimal and in base64, wherever in a longer text they stand."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for before in range(3):
        text = base64.b64encode(bytes(before) + secret)
        # The characters that also depend on what stands around are left out.
        whole = text[-(-before * 4 // 3) : (before + len(secret)) * 4 // 3]
        found |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


def test_the_forms_are_found_wherever_they_stand():
    secret = b"\xfb\xff" + os.urandom(14)
    for before in range(4):
        whole = b"x" * before + secret + b"tail"
        for text in (whole, whole.hex().encode(), base64.b64encode(whole), base64.urlsafe_b64encode(whole)):
            assert any(form in text for form in forms(secret)), (before, text)


class Secrets:
    """Marks that are in values and metadata, and the keys."""

    def __init__(self):
        self.value, self.field, self.meta, self.name = (f"{what}{uuid.uuid4().hex}" for what in ("Va", "Fi", "Me", "Na"))
        marks = [mark.encode() for mark in (self.value, self.field, self.meta, self.name)]
        texts = [base64.b64encode(key) for key in KEYS]
        # Not even half of a key.
        halves = [half for text in texts for half in (text[:20], text[-20:])] + [half for key in KEYS for half in (key[:16], key[16:])]
        self.all = {form: mark for mark in marks + halves + KEYS for form in forms(mark)}

    def metadata(self):
        return {"owner": self.meta, self.name: [1, {"deep": self.meta}]}

    def values(self):
        """Values of every type, small and large; of the large ones some do not get smaller by compression."""
        return {
            "text": self.value,
            "bytes": b"\x00\xff" + self.value.encode(),
            "json": {"a": [self.value, {self.field: 1.5}], self.field: self.value},
            "long": f"{self.value} " * 30_000,
            "large": self.value.encode() * 60_000,
            "noise": self.value.encode() + os.urandom(2 * MIB) + self.value.encode(),
            "tree": [{self.field: n, "text": self.value} for n in range(8_000)],
        }

    def check(self, where, data):
        data = data.encode() if isinstance(data, str) else data
        found = {self.all[form] for form in self.all if form in data}
        assert not found, f"{where} holds {found}"


@pytest.fixture(params=["local", "gcs", "s3"])
def place(request, broker, tmp_path):
    """A site of each kind; no worker yet."""
    site = Site(broker, tmp_path) if request.param == "local" else BucketSite(broker, tmp_path, request.getfixturevalue(request.param))
    yield site
    site.close()


def settings(**extra):
    return {
        "ENABLE_ENCRYPTION": "true",
        "ENCRYPTION_KEY": ",".join(base64.b64encode(key).decode() for key in KEYS),
        # All that is ever logged, besides the payloads that lapin logs when it is asked by name.
        "RUST_LOG": "trace",
        # Little memory, so that bodies and values go through files.
        "MAX_IN_FLIGHT_BYTES": 8 * MIB,
        **extra,
    }


def objects(site):
    """Each object in the bucket: its name, its bytes as they are kept, and all that is said of it."""
    for name in site.names():
        if isinstance(site.server, GcsServer):
            yield name, site.server.read(site.bucket, name), json.dumps(site.server.stat(site.bucket, name))
        else:
            answer = site.server.client.get_object(Bucket=site.bucket, Key=name)
            yield name, answer["Body"].read(), repr({key: value for key, value in answer.items() if key != "Body"})


def search(site, secrets):
    """Looks through every file below the site's folder, logs included, and through the bucket; returns what was read."""
    read = []
    for path in site.folder.rglob("*"):
        if path.is_file():
            secrets.check(path, path.read_bytes())
            secrets.check("a name", str(path))
            read.append(path)
    for name, body, about in objects(site) if isinstance(site, BucketSite) else ():
        secrets.check(f"the object {name}", body)
        secrets.check(f"the headers of {name}", about)
    return read


class Writer(threading.Thread):
    """Stores values under ever new keys until told to stop; nobody waits for the answers."""

    def __init__(self, site, secrets, prefix):
        super().__init__(daemon=True)
        self.site, self.secrets, self.prefix = site, secrets, prefix
        self.reply = "answers-" + prefix
        site.raw.declare(self.reply)
        self.enough, self.sent = threading.Event(), {}

    def run(self):
        raw = Raw(self.site.broker, self.site.vhost)
        while not self.enough.is_set():
            for value in self.secrets.values().values():
                key = f"{self.prefix}/{len(self.sent)}"
                body = dumps([[key, value], {"metadata": self.secrets.metadata()}, {}])
                raw.command("store", [], body=body, reply_to=self.reply, delivery_mode=2)
                self.sent[key] = value
            time.sleep(0.05)
        raw.close()


def kill_in_the_middle(site, secrets, prefix):
    """Kills the worker while it writes, with answers that were not acknowledged yet; returns what was sent."""
    writer = Writer(site, secrets, prefix)
    writer.start()
    try:
        wait_until(lambda: site.raw.count(writer.reply) >= 15, 60, "answers", step=0.005)
        site.workers[-1].kill()
    finally:
        writer.enough.set()
        writer.join(60)
    assert not writer.is_alive()
    assert len(writer.sent) > 15
    return writer.sent


def shown(site, worker, secrets):
    """What a running worker tells: every page of its port, its events, its dead copies."""
    for page in ("/metrics", "/health", "/readyz", "/"):
        secrets.check(page, worker.http(page)[1])
    for task in ("get_stats", "get_health_status"):
        secrets.check(task, json.dumps(site.call(task)))
    events = events_of(site.raw)
    assert events
    secrets.check("the events", json.dumps(events))


def provoke(site, secrets):
    """Commands that fail in every way with a value in their arguments: neither the error nor what is added to a dead copy tells it."""
    value, metadata = secrets.value, secrets.metadata()
    for task, args, kwargs in (
        ("store", ["../k", value], {"metadata": metadata}),
        ("store", ["k", value], {"metadata": [value]}),
        ("store", ["k", value], {"metadata": {"large": value * 400}}),
        ("store", ["k", value], {"metadata": metadata, "ttl_seconds": -1}),
        ("store", ["k", value], {"if_generation": "other"}),
        ("store", ["k", {"$ref": "gs://other-bucket/k", "text": value}], {"if_generation": "other"}),
        ("store", ["k", value, metadata, value], {}),
        ("store_all", ["k", value], {"metadata": metadata}),
    ):
        secrets.check("an error", repr(failure(site.send(task, *args, **kwargs))))
    site.raw.command("no_such_task", [value, metadata])
    site.raw.publish(f'[["k", "{value}"', {"task": "filestorage.store", "id": "unreadable"}, content_type="application/json")
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what="their end", step=0.2)
    # The body is the producer's own message, and so are the headers that it came with.
    copies = site.raw.drain(DEAD)
    assert len(copies) >= 3
    for copy in copies:
        ours = {name: text for name, text in copy.headers.items() if not name.endswith("argsrepr")}
        secrets.check("the headers of a dead copy", repr(ours) + repr(copy.properties.get("type")))


def configured(site, secrets):
    """What `config` prints, with the keys in the environment and in a file."""
    file = site.folder.parent / f"{site.folder.name}.keys"
    file.write_text("\n".join(base64.b64encode(key).decode() for key in KEYS))
    for extra in ({}, {"ENCRYPTION_KEY": "", "ENCRYPTION_KEY_FILE": str(file)}):
        for flags in ([], ["--json"]):
            env = site.env(**settings(**extra))
            done = subprocess.run([BINARY, "config", *flags], env=env, cwd=site.folder, capture_output=True, check=False)
            assert done.returncode == 0 and b"encryption_key" in done.stdout, done
            secrets.check("config", done.stdout + done.stderr)


@pytest.mark.parametrize("compression", ["false", "true"], ids=["raw", "compressed"])
def test_a_killed_worker_leaves_nothing_readable(place, compression):
    site, secrets, env = place, Secrets(), settings(ENABLE_COMPRESSION=compression)
    configured(site, secrets)
    worker = site.start(**env)
    for key, value in secrets.values().items():
        assert site.call("store", f"first/{key}", value, metadata=secrets.metadata())["encrypted"] is True
        assert site.call("retrieve", f"first/{key}") == value
    assert site.call("stat", "first/json")["metadata"] == secrets.metadata()
    provoke(site, secrets)
    shown(site, worker, secrets)
    sent = kill_in_the_middle(site, secrets, "killed")
    read = search(site, secrets)
    assert {"journal"} | (set() if isinstance(site, BucketSite) else {"objects"}) <= {part for path in read for part in path.parts}

    # The next one is given the same commands again, and its journal answers some of them.
    worker = site.start(**env)
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), 120, "an empty queue", step=0.2)
    answers = [message.json for message in site.raw.drain("answers-killed")]
    assert {answer["status"] for answer in answers} == {"SUCCESS"}
    assert len({answer["task_id"] for answer in answers}) == len(sent)
    for key in list(sent)[-7:]:
        assert site.call("retrieve", key) == sent[key]
    shown(site, worker, secrets)

    if isinstance(site, BucketSite):
        site.proxy.down()
        for key, value in secrets.values().items():
            assert site.call("store", f"away/{key}", value, metadata=secrets.metadata())["pending_sync"] is True
        kill_in_the_middle(site, secrets, "overlay")
        assert site.overlay()
        search(site, secrets)
        worker = site.start(**env)
        shown(site, worker, secrets)
        site.proxy.up()
        wait_until(lambda: not site.overlay() and site.queues()[QUEUE] == (0, 0), 120, "an empty overlay", step=0.2)
        assert site.call("retrieve", "away/json") == secrets.values()["json"]
    worker.kill()
    search(site, secrets)
