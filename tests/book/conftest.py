"""Servers of the book's own: a broker, an emulator of Cloud Storage and an S3 store, on 127.0.0.1 and free ports."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from pages import ROOT

BINARY = Path(os.environ.get("FILESTORAGE_BIN", ROOT / "target" / "debug" / "filestorage"))
SETTINGS = ("CELERY_", "GCS_", "S3_", "AWS_", "GOOGLE_", "STORAGE_", "LOCAL_STORAGE_", "METRICS_", "EXCHANGE_", "FILESTORAGE_TEST_")


def pytest_sessionstart(session):
    # Told to stop from outside, the tests still stop what they started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not session.config.option.collectonly and not BINARY.exists():
        raise pytest.UsageError(f"{BINARY} does not exist; run: cargo build")


class Servers:
    """The folders of the development servers; pages start them, `close` stops what is left."""

    def __init__(self):
        self.folders = {
            "dev-broker": ("DEV_BROKER_DIR", ROOT / "target" / "book-broker"),
            "dev-gcs": ("DEV_GCS_DIR", ROOT / "target" / "book-gcs"),
            "dev-s3": ("DEV_S3_DIR", ROOT / "target" / "book-s3"),
        }

    def env(self):
        """The environment of a reader who has set nothing yet."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
        env.update({name: str(folder) for name, folder in self.folders.values()})
        env.update(NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost")
        return env

    def generator_env(self):
        """The generator kills its emulator, so that one is its own."""
        return {**self.env(), "DEV_GCS_DIR": str(ROOT / "target" / "book-gcs-generate")}

    def close(self):
        for server in self.folders:
            subprocess.run([ROOT / "deploy" / server, "stop"], env=self.env(), capture_output=True, timeout=120, check=False)


@pytest.fixture(scope="session")
def servers():
    servers = Servers()
    yield servers
    servers.close()
