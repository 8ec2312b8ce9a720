"""What an application asks of the worker, for the Celery of any time: `python producer.py BROKER_URL PROTOCOL PREFIX`.

Prints one JSON object: the name of each step and what came of it. Runs on Python 3.8 and with Celery 4.4.
"""

import json
import sys
import time

import celery
import kombu
from celery import Celery, chain

TIMEOUT = 40


def main(url, protocol, prefix):
    app = Celery("producer", broker=url, backend="rpc://")
    app.conf.update(task_default_queue="filestorage", task_protocol=int(protocol))
    typed = tuple(map(int, kombu.__version__.split(".")[:2])) >= (5, 3)

    def send(task, *args, **options):
        return app.send_task("filestorage." + task, args, **options)

    def call(task, *args, **options):
        return send(task, *args, **options).get(timeout=TIMEOUT)

    def sig(task, *args, **options):
        return app.signature("filestorage." + task, args=args, **options)

    def raised(result):
        error = result.get(timeout=TIMEOUT, propagate=False)
        return [result.state, type(error).__module__, type(error).__name__, list(error.args)]

    done = {"celery": celery.__version__, "kombu": kombu.__version__}
    revoked = send("store", prefix + "/revoked", 1, countdown=3)
    app.control.revoke(revoked.id)
    began = time.time()
    parked = send("store", prefix + "/later", "parked", countdown=2)

    done["store"] = call("store", prefix + "/text", "naïve ☃")["key"]
    done["text"] = call("retrieve", prefix + "/text")
    # Kombu reads and writes bytes in JSON from 5.3 on; before that a producer writes their form itself.
    data = b"\xff bytes" if typed else {"__type__": "base64", "__value__": "/yBieXRlcw=="}
    kind = call("store", prefix + "/bytes", data)["kind"]
    done["bytes"] = [kind, call("retrieve", prefix + "/bytes") == data]
    call("store", prefix + "/none", None)
    done["none"] = [call("exists", prefix + "/none"), call("retrieve", prefix + "/none")]
    done["error"] = raised(send("copy", prefix + "/missing", prefix + "/x"))

    call("store", prefix + "/pointer", prefix + "/text")
    steps = chain(sig("retrieve", prefix + "/pointer"), sig("retrieve"), sig("store", prefix + "/chained", "end", immutable=True))
    result = steps.apply_async()
    done["chain"] = [result.get(timeout=TIMEOUT)["key"], result.parent.get(timeout=TIMEOUT)]

    send("store", prefix + "/ignored", "silent", ignore_result=True)
    call("store", prefix + "/linked", 1, link=sig("store", prefix + "/callback", "called", immutable=True))
    for name in ("ignored", "callback"):
        until = time.time() + TIMEOUT
        while not call("exists", prefix + "/" + name) and time.time() < until:
            time.sleep(0.05)
        done[name] = call("retrieve", prefix + "/" + name)

    done["ping"] = list(app.control.inspect(timeout=2).ping().values())
    done["countdown"] = [parked.get(timeout=TIMEOUT)["key"], time.time() - began >= 2]
    done["revoke"] = raised(revoked) + [call("exists", prefix + "/revoked")]
    print(json.dumps(done))


main(*sys.argv[1:])
