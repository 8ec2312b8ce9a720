"""Steps of the rows about Celery's features, with Celery's own client; run by benches/run in the peers' environment.

    python celery_client.py STEP BROKER …

`monitor on|off` makes or removes a queue that is told of every event, and prints how many messages came; `ping N` prints how long
each of N answers to `ping` took, in ms; `delay QUEUE N` sends commands for the next day and waits until none is left; `depth QUEUE`
prints how many are; `forget` empties the queues in which commands wait; `fill QUEUE N rpc|URL` fills a queue with stores and empties the Redis; `drained rpc|URL N`
waits for N answers and prints how many came a second.
"""

import datetime
import sys
import time
import uuid

import amqp
import kombu
import redis
from celery import Celery

MONITOR, ANSWERS = "bench.monitor", "bench.answers"
VALUE = "v" * 200
PAUSE = 0.02


def connection(broker):
    made = kombu.Connection(broker)
    made.connect()
    return made


def count(channel, queue):
    """Messages that are ready in a queue."""
    return channel.queue_declare(queue, passive=True).message_count


def monitor(broker, verb):
    with connection(broker) as made:
        channel = made.default_channel
        if verb == "on":
            channel.queue_declare(MONITOR, auto_delete=False, durable=True)
            channel.exchange_declare("celeryev", "topic", durable=True, auto_delete=False)
            channel.queue_bind(MONITOR, "celeryev", "task.#")
        else:
            print(channel.queue_delete(MONITOR))


def ping(broker, times):
    app = Celery("bench", broker=broker, set_as_current=False)
    app.control.ping(timeout=5, limit=1)
    took = []
    for _ in range(int(times)):
        begin = time.monotonic()
        assert app.control.ping(timeout=5, limit=1), "nobody answers"
        took.append((time.monotonic() - begin) * 1000)
    print(*(f"{one:.1f}" for one in took))


def send(broker, queue, number, headers, reply_to):
    with connection(broker) as made:
        channel = made.default_channel
        channel.queue_declare(queue, durable=True, auto_delete=False)
        if reply_to:
            channel.queue_declare(reply_to, durable=True, auto_delete=False)
            channel.queue_purge(reply_to)
        for index in range(number):
            id = str(uuid.uuid4())
            arguments = f'[["bench/{id[:2]}/{index}", "{VALUE}"], {{}}, {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]'
            message = amqp.Message(
                arguments, content_type="application/json", content_encoding="utf-8", delivery_mode=2, correlation_id=id, reply_to=reply_to,
                application_headers={"lang": "py", "task": "filestorage.store", "id": id, "root_id": id, "retries": 0, **headers},
            )  # fmt: skip
            channel.basic_publish(message, "", queue)
        while count(channel, queue) < number and not headers:
            time.sleep(PAUSE)


def delay(broker, queue, number):
    tomorrow = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    send(broker, queue, int(number), {"eta": tomorrow.isoformat()}, None)
    with connection(broker) as made:
        quiet = 0
        # The last ones are on their way.
        while quiet < 100:
            quiet = 0 if count(made.default_channel, queue) else quiet + 1
            time.sleep(PAUSE)


def depth(broker, queue):
    with connection(broker) as made:
        print(count(made.default_channel, queue))


def forget(broker):
    with connection(broker) as made:
        channel, unit = made.default_channel, 100
        while unit < 2**40:
            try:
                channel.queue_purge(f"filestorage.delay.{unit}")
            except amqp.NotFound:
                channel = made.channel()
            unit *= 2


def fill(broker, queue, number, kind):
    if kind != "rpc":
        redis.Redis.from_url(kind).flushdb()
    send(broker, queue, int(number), {}, ANSWERS)


def drained(broker, kind, number):
    number = int(number)
    with connection(broker) as made:
        if kind == "rpc":
            look = lambda: count(made.default_channel, ANSWERS)  # noqa: E731
        else:
            look = redis.Redis.from_url(kind).dbsize
        first, found = None, 0
        while found < number:
            found, now = look(), time.monotonic()
            if first is None and found >= number // 10:
                first = (now, found)
            time.sleep(PAUSE)
    print((found - first[1]) / (now - first[0]))


if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    {function.__name__: function for function in (monitor, ping, delay, depth, forget, fill, drained)}[step](*arguments)
