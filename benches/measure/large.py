"""Sends commands about large values through a real Celery client; run by benches/run in the peers' environment.

    python large.py BROKER QUEUE PID FOLDER MIB

Stores a file of that many MiB by reference and writes it back to a file; prints what that took and the most memory that
the process PID ever had resident.
"""

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

from celery import Celery

MIB = 1 << 20


def digest_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(MIB):
            digest.update(piece)
    return digest.digest()


def main():
    broker, queue, pid, folder, size = sys.argv[1:]
    folder, size = Path(folder), int(size)
    app = Celery("large", broker=broker, backend="rpc://", set_as_current=False)
    app.conf.task_default_queue = queue
    source, target = folder / "in", folder / "out"
    noise = random.Random(1)
    with open(source, "wb") as file:
        for _ in range(size):
            file.write(noise.randbytes(MIB))
        os.fsync(file.fileno())
    result = {}
    for name, task, arguments, options in (
        ("store", "filestorage.store", ["large", {"$ref": f"file://{source}"}], {}),
        ("retrieve", "filestorage.retrieve", ["large"], {"destination": f"file://{target}"}),
    ):
        begin = time.monotonic()
        receipt = app.send_task(task, arguments, options).get(timeout=600)
        result[name] = time.monotonic() - begin
        assert receipt["size"] == size * MIB, receipt
    result["same"] = digest_of(source) == digest_of(target)
    with open(f"/proc/{pid}/status") as file:
        result["peak_bytes"] = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    app.send_task("filestorage.delete", ["large"]).get(timeout=60)
    source.unlink()
    target.unlink()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
