"""HTTPS to a bucket: the authorities are the system's, or those of SSL_CERT_FILE."""

import socket
import socketserver
import ssl
import threading
from urllib.parse import urlsplit

import pytest

from buckets import BucketSite
from certificates import Authority
from harness import failure


class Relay(socketserver.ThreadingTCPServer):
    """Takes TLS and passes what is inside to a server that speaks none."""

    daemon_threads = True

    def __init__(self, upstream, certificate, key):
        self.upstream = urlsplit(upstream)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(certificate, key)
        super().__init__(("127.0.0.1", 0), Passage)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"https://localhost:{self.server_address[1]}"


class Passage(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            inside = self.server.context.wrap_socket(self.request, server_side=True)
            outside = socket.create_connection((self.server.upstream.hostname, self.server.upstream.port))
        except OSError:
            return
        back = threading.Thread(target=pump, args=(outside, inside), daemon=True)
        back.start()
        pump(inside, outside)
        back.join()


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


@pytest.fixture
def place(broker, s3, tmp_path):
    site = BucketSite(broker, tmp_path, s3)
    site.authority = Authority(tmp_path, "authority")
    site.relay = Relay(s3.url, *site.authority.sign("server", hosts=["localhost"]))
    yield site
    site.relay.shutdown()
    site.close()


def test_an_authority_of_ones_own_is_trusted_by_ssl_cert_file(place):
    place.start(S3_ENDPOINT_URL=place.relay.url, SSL_CERT_FILE=place.authority.file)
    receipt = place.call("store", "k", b"\x00" * 100_000)
    assert receipt["backend"] == "s3" and not receipt["pending_sync"]
    assert place.call("retrieve", "k") == b"\x00" * 100_000
    assert place.names() == ["k"]


def test_a_server_without_a_trusted_certificate_gets_nothing(place):
    place.start(S3_ENDPOINT_URL=place.relay.url, ENABLE_LOCAL_FALLBACK="true", MAX_RETRIES=0)
    assert place.call("store", "k", b"x")["pending_sync"] is True
    error = failure(place.send("retrieve", "other"))
    assert type(error).__name__ == "StorageUnavailable"
    done = place.run("doctor", S3_ENDPOINT_URL=place.relay.url, MAX_RETRIES=0)
    assert done.returncode == 69
    assert "certificate" in (done.stdout + done.stderr).decode()
    assert place.names() == []
