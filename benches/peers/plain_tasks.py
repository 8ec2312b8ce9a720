"""Celery tasks over plain files: the least Python that keeps values under keys.

A value is written to a temporary file that is renamed, so that readers see the old one or the new one.
`PLAIN_FSYNC=1` puts it on stable storage first, as filestorage does before it answers.
"""

import os
from pathlib import Path

from peers.celery_app import app

ROOT = Path(os.environ["LOCAL_STORAGE_PATH"])
FSYNC = os.environ.get("PLAIN_FSYNC") == "1"


@app.task(name="filestorage.store")
def store(key, data, metadata=None):
    path = ROOT / key
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data.encode())
        if FSYNC:
            file.flush()
            os.fsync(file.fileno())
    os.rename(temporary, path)
    sync_folder(path.parent)
    return True


@app.task(name="filestorage.retrieve")
def retrieve(key):
    try:
        return (ROOT / key).read_bytes().decode()
    except FileNotFoundError:
        return None


@app.task(name="filestorage.delete")
def delete(key):
    path = ROOT / key
    path.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def sync_folder(path):
    """Makes a rename or a removal in the folder durable, when that is asked for."""
    if FSYNC:
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
