"""Fixtures: one broker for the run, one worker shared by the tests that leave no trace, a fresh site for the others."""

import signal

import pytest

from buckets import BucketSite, GcsServer, S3Server
from harness import BINARY, LEAST_PRIVILEGE, Broker, Site
from redis_server import RedisServer, RedisSite


def pytest_sessionstart(session):
    # Told to stop from outside, the tests still stop their workers and their broker.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not session.config.option.collectonly and not BINARY.exists():
        raise pytest.UsageError(f"{BINARY} does not exist; run: cargo build")


def full_rights(request):
    """Whether a test is marked so: `full_rights("why")`."""
    return not LEAST_PRIVILEGE or request.node.get_closest_marker("full_rights") is not None


@pytest.fixture(scope="session")
def broker():
    broker = Broker()
    yield broker
    broker.close()


@pytest.fixture(scope="session")
def gcs():
    """The emulator of Cloud Storage; each test makes buckets of its own."""
    server = GcsServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3():
    """The server of S3."""
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def bucket_site(request, broker, gcs, tmp_path):
    """A site of its own on a bucket of its own in Cloud Storage's emulator, behind a fault proxy; no worker yet."""
    site = BucketSite(broker, tmp_path, gcs, full_rights=full_rights(request))
    yield site
    site.close()


@pytest.fixture(scope="module")
def server():
    """A Redis that the tests of one file share; none of them stops it."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def own(request, broker, tmp_path):
    """A site on a Redis of its own, which the test may stop and kill."""
    server = RedisServer(tmp_path / "redis")
    site = RedisSite(broker, tmp_path, server, full_rights(request))
    yield site
    site.close()
    server.close()


@pytest.fixture(scope="module")
def shared(request, broker, tmp_path_factory):
    """A site with a running worker that the tests of one file share; each uses keys of its own."""
    site = Site(broker, tmp_path_factory.mktemp("shared"), full_rights(request))
    try:
        worker = site.start()
        yield site
        worker.assert_alive()
    finally:
        site.close()


@pytest.fixture
def site(request, broker, tmp_path):
    """A site of its own: a vhost without messages, an empty folder, no worker yet."""
    site = Site(broker, tmp_path, full_rights(request))
    yield site
    site.close()


@pytest.fixture
def key(request):
    """A key nobody else uses."""
    return f"{request.node.nodeid.split('::')[-1]}".replace("/", "_").replace("\\", "_")[:200].encode(
        "ascii", "backslashreplace"
    ).decode().replace("\\", "_")
