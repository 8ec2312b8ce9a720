"""Celery tasks over the FileStorage class of PyPI's aiecs, in local mode (no bucket is named).

Importing `aiecs` itself wants some forty distributions, so only the module of the class is loaded: its parent packages
are entered by path, without running their `__init__`. What the module itself imports is aiofiles and
prometheus_client. The class is used as its documentation shows, with its own defaults; it does not sync.
"""

import asyncio
import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path

from celery.signals import worker_process_init

from peers.celery_app import app


def load_class():
    root = Path(importlib.util.find_spec("aiecs").origin).parent
    for name in ("", ".infrastructure", ".infrastructure.monitoring", ".infrastructure.persistence"):
        package = types.ModuleType("aiecs" + name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[package.__name__] = package
    return importlib.import_module("aiecs.infrastructure.persistence.file_storage").FileStorage


FileStorage = load_class()
storage = None
loop = None


@worker_process_init.connect
def open_storage(**_):
    """Gives each child its own loop: one made before the fork would share its wake-up pipe with its siblings."""
    global storage, loop
    storage = FileStorage({"local_storage_path": os.environ["LOCAL_STORAGE_PATH"]})
    loop = asyncio.new_event_loop()


@app.task(name="filestorage.store")
def store(key, data, metadata=None):
    return loop.run_until_complete(storage.store(key, data, metadata))


@app.task(name="filestorage.retrieve")
def retrieve(key):
    return loop.run_until_complete(storage.retrieve(key))


@app.task(name="filestorage.delete")
def delete(key):
    return loop.run_until_complete(storage.delete(key))
