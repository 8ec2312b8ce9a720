"""Thousands of commands from an unmodified Celery client, entered into a ledger with every reply that comes.

Threads send, each on a connection of its own with publisher confirms; one thread consumes the reply queue raw, so that a
second answer is seen, which Celery's result backend would drop. The reply queue is a durable quorum queue: it outlives the
faults, as replies that wait for their caller must.
"""

from __future__ import annotations

import gzip
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from celery import Celery
from google.cloud.exceptions import NotFound
from kombu import Consumer, Queue

from ledger import ABSENT, UNKNOWN, Command, Ledger

# What a send draws from, and how often: a store of a new key, one over an old value, and so on.
MIX = {"new": 40, "overwrite": 20, "retrieve": 20, "delete": 8, "stat": 5, "exists": 5, "list_keys": 2}
# What the ledger calls otherwise than the worker does.
TASKS = {"read_back": "retrieve"}
HOT_KEYS = 5
# The share of commands that bear a task id which others bear as well, and how many such ids there are.
REUSE = 0.25
IDS = 20
CONFIRM_SECONDS = 30
TRIES = 20
REPLY_EXPIRES_MS = 900_000


def client(urls, queue, queue_type="quorum", **settings):
    """A Celery application as a careful producer configures it."""
    app = Celery("ledger", broker=list(urls), set_as_current=False)
    app.conf.update(
        task_default_queue=queue,
        task_default_queue_type=queue_type,
        broker_transport_options={"confirm_publish": True},
        broker_heartbeat=8,
        broker_connection_timeout=4,
        # A repeated publish would be a second command; the ledger repeats by itself, with an id of its own.
        task_publish_retry=False,
        **settings,
    )
    return app


class Load:
    """A load on one queue. `start` begins it, `finish` ends it and waits for the answers; the ledger is `ledger`."""

    def __init__(self, urls, queue="filestorage", queue_type="quorum", *, senders=4, rate=200, window=300, seed=1):
        self.urls = list(urls)
        self.queue = queue
        self.app = client(urls, queue, queue_type)
        self.queue_type = queue_type
        self.prefix = f"ledger/{uuid.uuid4().hex[:8]}"
        self.reply_to = str(uuid.uuid4())
        self.ledger = Ledger()
        self.rate, self.window = rate, window
        self.random = random.Random(seed)
        self.troubles = []  # what the client saw of the fault: one line a lost connection or refused publish
        self.sending = threading.Event()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._keys, self._busy, self._versions, self._open = [], set(), {}, set()
        self._used = set()
        self._next = 0.0
        self._mine, self._producers = threading.local(), []
        self.begun = self.clock()
        with self._connect() as connection:
            self._reply_queue(connection.default_channel).declare()
        self._replies = threading.Thread(target=self._consume, name="replies", daemon=True)
        self._senders = [threading.Thread(target=self._send, name=f"sender {n}", daemon=True) for n in range(senders)]
        self._replies.start()

    clock = staticmethod(time.monotonic)

    # --- steering ---------------------------------------------------------------------------------------------------

    def start(self):
        self.begun = self.clock()
        self.sending.set()
        for thread in self._senders:
            thread.start()
        return self

    def wait_sent(self, count, timeout=120):
        """Waits until so many commands have been sent."""
        self._wait(lambda: len(self.ledger.commands) >= count, timeout, f"{count} commands to be sent")

    def wait_flowing(self, answers=100, timeout=240):
        """Waits until so many more answers have come. Not as fast as a quiet machine gives them: other tests run beside these."""
        wanted = self.ledger.answered() + answers
        self._wait(lambda: self.ledger.answered() >= wanted, timeout, f"{answers} more answers")

    def _wait(self, condition, timeout, what):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout} s for {what}; {self.state()}"
            time.sleep(0.05)

    def state(self):
        """What is under way and what went wrong, for the message of a failed test."""
        waiting = [f"{command.op} {command.key} {command.id}" for command in self.ledger.waiting()]
        alive = sum(thread.is_alive() for thread in self._senders)
        return f"{len(waiting)} without answer {waiting[:3]}, {alive} senders alive, last troubles {self.troubles[-3:]}"

    def stop(self, least=0, timeout=300):
        """Ends the sending once at least so many commands were sent."""
        self.wait_sent(least, timeout)
        self.sending.clear()
        for thread in self._senders:
            thread.join(CONFIRM_SECONDS * 2)
        self.stopped = self.clock()

    def drain(self, timeout=120):
        """Waits for the answer to everything that was confirmed; whoever waits after `timeout` waits for ever."""
        deadline = time.monotonic() + timeout
        while self.ledger.waiting() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.ledger.waiting()

    def read_back(self, timeout=120):
        """Retrieves every key through the workers; returns value by key, UNKNOWN where no usable answer came."""
        keys = self.ledger.keys()
        with ThreadPoolExecutor(len(self._senders)) as pool:
            asked = dict(zip(keys, pool.map(self._retrieve, keys)))
        self.drain(timeout)
        found = {}
        for key, command in asked.items():
            good = command is not None and command.first and command.first.status == "SUCCESS"
            found[key] = command.first.result if good else UNKNOWN
        return found

    def verdict(self, bucket, errors=frozenset(), timeout=120):
        """Compares every key with the ledger, as the workers give it and as it lies in the bucket."""
        kept = self.read_back(timeout)
        verdict = self.ledger.judge(errors)
        for key, value in kept.items():
            verdict.settle(key, value, "the workers")
        for key, data in direct(bucket, kept).items():
            verdict.settle_bytes(key, data, "the bucket")
        return verdict

    def clear(self, bucket):
        """Takes this load's objects out of the bucket: its emulator searches all it holds for each, one after another."""
        remove(bucket, self.ledger.keys())

    def close(self):
        self.sending.clear()
        self._end.set()
        self._replies.join(10)
        for producer in self._producers:
            hang_up(producer)
        try:
            with self._connect() as connection:
                self._reply_queue(connection.default_channel).delete()
        except Exception as error:  # noqa: BLE001 - the queue expires by itself
            self.troubles.append(f"reply queue not deleted: {error!r}")
        self.app.close()

    def plant_reply(self, id, result):
        """Sends a reply as a worker would: for a test of the ledger."""
        with self._connect() as connection, connection.Producer() as producer:
            reply = {"task_id": self.ledger.commands[id].task_id, "status": "SUCCESS", "result": result, "traceback": None, "children": []}
            producer.publish(reply, exchange="", routing_key=self.reply_to, correlation_id=id, serializer="json")
        self._wait(lambda: len(self.ledger.commands[id].answers) > 1, 20, "the planted reply")

    # --- sending ----------------------------------------------------------------------------------------------------

    def _connect(self):
        connection = self.app.connection_for_write()
        connection.ensure_connection(max_retries=20, interval_start=0.1, interval_step=0.2, interval_max=1)
        return connection

    def _producer(self):
        return self.app.amqp.Producer(self._connect(), auto_declare=False)

    def _send(self):
        while self.sending.is_set():
            if self._may_send():
                self._until_confirmed(*self._draw())
            else:
                time.sleep(0.002)

    def _retrieve(self, key):
        return self._until_confirmed("read_back", key, [key], {})

    def _until_confirmed(self, op, key, args, kwargs):
        """Sends a command, and another one like it for each that is not confirmed; returns the last, or None."""
        for _ in range(TRIES):
            value = ABSENT
            if op == "store":
                value, args = self._another(key)
            command = Command(str(uuid.uuid4()), op, key, value, self.clock(), task=self._used_id(op, key))
            try:
                self._publish(command, args, kwargs)
                self.ledger.confirm(command.id)
                return command
            except Exception as error:  # noqa: BLE001 - whatever it was, there is no confirm
                self._trouble(f"{op} not confirmed", error)
                with self._lock:
                    self._open.discard(command.id)
                # A late confirm on this channel would be taken for that of the next publish.
                hang_up(self._mine.__dict__.pop("producer", None))
        return None

    def _publish(self, command, args, kwargs):
        """Publishes one command on this thread's own connection and waits for the confirm."""
        if not hasattr(self._mine, "producer"):
            self._mine.producer = self.app.amqp.Producer(self._connect(), auto_declare=False)
            with self._lock:
                self._producers.append(self._mine.producer)
        command.sent = self.clock()
        self.ledger.send(command)
        with self._lock:
            self._open.add(command.id)
        self.app.send_task(
            f"filestorage.{TASKS.get(command.op, command.op)}",
            args,
            kwargs,
            task_id=command.task_id,
            correlation_id=command.id,
            reply_to=self.reply_to,
            producer=self._mine.producer,
            exchange="",
            routing_key=self.queue,
            confirm_timeout=CONFIRM_SECONDS,
            retry=False,
        )

    def _trouble(self, what, error):
        self.troubles.append(f"{self.clock() - self.begun:.1f} s: {what}: {type(error).__name__} {str(error)[:120]}")

    def _may_send(self):
        """Holds the rate, and the number of commands that wait at once."""
        with self._lock:
            now = time.monotonic()
            if now < self._next or len(self._open) >= self.window:
                return False
            self._next = max(self._next, now - 0.1) + 1 / self.rate
            return True

    def _draw(self):
        """Chooses a command. A key has one write under way at a time, so that the order of the writes is known."""
        with self._lock:
            op = self.random.choices(list(MIX), MIX.values())[0]
            if op == "list_keys":
                prefix = f"{self.prefix}/{self.random.randrange(16):x}/"
                return op, prefix, [], {"prefix": prefix}
            key = None
            if op != "new" and self._keys:
                hot = op == "overwrite" and self.random.random() < 0.3
                key = self.random.choice(self._keys[:HOT_KEYS] if hot else self._keys)
                if op in ("overwrite", "delete") and key in self._busy:
                    key = None
            if key is None:
                op, key = "new", f"{self.prefix}/{len(self._keys) % 16:x}/{len(self._keys)}"
                self._keys.append(key)
            if op in ("new", "overwrite", "delete"):
                self._busy.add(key)
            return {"new": "store", "overwrite": "store"}.get(op, op), key, [key], {}

    def _used_id(self, op, key):
        """An id that other messages bear, too, now and then. Never the same with the same body: nobody could tell those apart."""
        with self._lock:
            id = f"{self.prefix}/again/{self.random.randrange(IDS)}"
            if self.random.random() > REUSE or (op == "delete" and (id, key) in self._used):
                return None
            self._used.add((id, key))
            return id

    def _another(self, key):
        """The next value of a key, unlike any other, and the arguments that store it."""
        with self._lock:
            version = self._versions[key] = self._versions.get(key, 0) + 1
            pad = self.random.randbytes(self.random.choice((10, 60, 200)) if self.random.random() > 0.01 else 50_000)
            kind = self.random.randrange(3)
        text = f"{key} version {version} {pad.hex()}"
        value = (text, text.encode() + pad, {"key": key, "version": version, "pad": pad.hex()})[kind]
        return value, [key, value]

    # --- replies ----------------------------------------------------------------------------------------------------

    def _reply_queue(self, channel):
        # Of the same type as the commands' queue. On a lone RabbitMQ 4.0 that was killed a young quorum queue may stay without
        # a leader: it takes no reply and no consumer (541).
        arguments = {"x-queue-type": self.queue_type, "x-expires": REPLY_EXPIRES_MS}
        return Queue(self.reply_to, channel=channel, durable=True, queue_arguments=arguments)

    def _consume(self):
        while not self._end.is_set():
            try:
                with self._connect() as connection:
                    self._consume_on(connection)
            except Exception as error:  # noqa: BLE001 - any broken connection is made anew
                if not self._end.is_set():
                    self._trouble("reply connection lost", error)
                    time.sleep(0.1)

    def _consume_on(self, connection):
        channel = connection.channel()
        queue = Queue(self.reply_to, channel=channel, no_declare=True)
        with Consumer(channel, [queue], callbacks=[self._on_reply], accept=["json"], prefetch_count=500, auto_declare=False):
            checked = time.monotonic()
            while not self._end.is_set():
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    pass
                if time.monotonic() - checked > 2:
                    connection.heartbeat_check(rate=4)
                    checked = time.monotonic()

    def _on_reply(self, reply, message):
        id = message.properties.get("correlation_id")
        again = bool(message.delivery_info.get("redelivered"))
        command = self.ledger.answer(id, self.clock(), reply["status"], reply["result"], again, reply["task_id"])
        message.ack()
        with self._lock:
            self._open.discard(id)
            if command is not None and command.writes:
                self._busy.discard(command.key)


def hang_up(producer):
    """Closes the connection of a producer, which may be broken or None."""
    try:
        producer.connection.close()
    except Exception:  # noqa: BLE001, S110 - it is gone either way
        pass


def direct(bucket, keys, threads=8):
    """Reads the keys straight from a bucket of google-cloud-storage; bytes by key, None for nothing."""
    def read(key):
        try:
            data = bucket.blob(key).download_as_bytes(raw_download=True)
            # No value of the ledger begins so: these are the bytes of one that was compressed.
            return key, gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        except NotFound:
            return key, None

    with ThreadPoolExecutor(threads) as pool:
        return dict(pool.map(read, keys))


def remove(bucket, keys, threads=8):
    """Deletes the keys straight from a bucket of google-cloud-storage; one that is not there is none to delete."""
    def delete(key):
        try:
            bucket.blob(key).delete()
        except NotFound:
            pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(delete, keys))
