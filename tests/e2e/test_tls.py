"""TLS to a real RabbitMQ with deploy/rabbitmq/tls.conf, which asks for client certificates; certificates are made here."""

import re
import shutil
import ssl

import pytest

from certificates import Authority
from harness import ROOT, Site, wait_until
from private import PrivateBroker, free_port

SHIPPED = ROOT / "deploy" / "rabbitmq" / "tls.conf"
# What the broker's own log would repeat for a minute is told within this.
SOON = 30


class Encrypted(PrivateBroker):
    """A node with a plain listener for the test's own sake and one that takes known certificates only."""

    def __init__(self, folder, further=None, plugins=""):
        self.folder = folder
        self.authority, self.foreign = Authority(folder, "authority"), Authority(folder, "foreign")
        self.show_server("localhost", "127.0.0.1")
        self.client = self.authority.sign("client")
        self.tls_port = free_port()
        here = {
            "listeners.ssl.1": f"127.0.0.1:{self.tls_port}",
            "ssl_options.cacertfile": self.authority.file,
            "ssl_options.certfile": folder / "server.pem",
            "ssl_options.keyfile": folder / "server.key",
        }
        shipped = dict(re.findall(r"^(\S+) = (.*)$", SHIPPED.read_text(), re.M))
        assert here.keys() <= shipped.keys()
        super().__init__(folder, shipped | here | (further or {}), plugins)

    def show_server(self, *hosts, authority=None, expired=False):
        """Gives the broker another certificate."""
        (authority or self.authority).sign("server", hosts=hosts, expired=expired)
        if hasattr(self, "_ctl"):
            self.ctl("eval", "ssl:clear_pem_cache().")

    def encrypted(self, url, host="localhost"):
        """The URL of the encrypted listener for the same user and vhost."""
        return url.replace("amqp://", "amqps://").replace(f"{self.host}:{self.port}", f"{host}:{self.tls_port}")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = Encrypted(tmp_path_factory.mktemp("tls"))
    yield node
    node.close()


@pytest.fixture
def secure(node, tmp_path):
    """A site whose worker and client log in with their least privilege, encrypted."""
    site = Site(node, tmp_path, full_rights=False)
    site.app.close()
    site.url, site.client_url = node.encrypted(site.url), node.encrypted(site.client_url)
    certificate, key = node.authority.sign("producer")
    site.app = site.client(
        broker_use_ssl={
            "ca_certs": str(node.authority.file), "certfile": str(certificate), "keyfile": str(key),
            "cert_reqs": ssl.CERT_REQUIRED, "server_hostname": "localhost",
        },
    )  # fmt: skip
    yield site
    site.close()
    node.show_server("localhost", "127.0.0.1")


def tls(node, certificate=None, ca=None):
    """The worker's settings."""
    certificate, key = certificate or node.client
    return {
        "BROKER_TLS_CA_FILE": ca or node.authority.file,
        "BROKER_TLS_CERTIFICATE_FILE": certificate,
        "BROKER_TLS_KEY_FILE": key,
    }


def subjects(node):
    """Whose certificates the broker sees, by user."""
    rows = node.ctl("list_connections", "user", "peer_cert_subject", "ssl")
    return {row.split("\t")[0]: row.split("\t")[1:] for row in rows.splitlines()}


def test_the_main_job_over_tls_with_a_certificate_on_both_sides(node, secure):
    worker = secure.start(**tls(node))
    assert secure.call("store", "k", b"\x00\xff")["key"] == "k"
    assert secure.call("retrieve", "k") == b"\x00\xff"
    secure.send("store", "later", 1, _countdown=0.5).get(timeout=20)
    found = subjects(node)
    assert found[node.prefix + "worker"] == ["CN=client", "true"]
    assert found[node.prefix + "producer"] == ["CN=producer", "true"]
    assert "PRIVATE KEY" not in worker.log()


@pytest.mark.parametrize(
    "hosts, authority, expired, word",
    [
        (["localhost"], "foreign", False, "UnknownIssuer"),
        (["elsewhere.example"], None, False, "not valid for name"),
        (["localhost"], None, True, "expired"),
    ],
    ids=["unknown authority", "another host", "expired"],
)
def test_a_server_that_cannot_prove_who_it_is_gets_no_password(node, secure, hosts, authority, expired, word):
    node.show_server(*hosts, authority=authority and node.foreign, expired=expired)
    worker = secure.spawn(**tls(node))
    wait_until(lambda: word in worker.http("/readyz")[1], SOON, worker.log)
    assert worker.http("/readyz")[0] == 503
    assert node.prefix + "worker" not in subjects(node)
    # A certificate is renewed without a restart of the worker.
    node.show_server("localhost", "127.0.0.1")
    worker.wait_ready()
    assert secure.call("store", "k", 1)["key"] == "k"


@pytest.mark.parametrize("who", ["nobody", "unknown", "expired"])
def test_a_client_without_a_good_certificate_is_not_let_in(node, secure, who):
    env = {
        "nobody": lambda: {"BROKER_TLS_CA_FILE": node.authority.file},
        "unknown": lambda: tls(node, node.foreign.sign("stranger")),
        "expired": lambda: tls(node, node.authority.sign("late", expired=True)),
    }[who]()
    worker = secure.spawn(**env)
    word = {"nobody": "ertificate", "unknown": "UnknownCA", "expired": "ertificate"}[who]
    wait_until(lambda: word in worker.http("/readyz")[1], SOON, worker.log)
    assert worker.http("/readyz")[0] == 503
    assert node.prefix + "worker" not in subjects(node)


def test_a_renewed_certificate_is_shown_with_the_next_session(node, secure):
    names = [secure.folder / name for name in ("mine.pem", "mine.key")]
    for made, mine in zip(node.authority.sign("first"), names):
        shutil.copy(made, mine)
    secure.start(**tls(node, names))
    assert secure.call("store", "k", 1)["key"] == "k"
    assert subjects(node)[node.prefix + "worker"][0] == "CN=first"
    for made, mine in zip(node.authority.sign("second"), names):
        shutil.copy(made, mine)
    node.ctl("close_all_connections", "-p", secure.vhost, "tested")
    worker = secure.workers[-1]
    wait_until(lambda: subjects(node).get(node.prefix + "worker", [""])[0] == "CN=second", SOON, worker.log, step=0.5)
    worker.wait_ready()
    # Half of a renewal: what was whole last is shown until the rest is there.
    names[1].unlink()
    names[0].write_text("")
    sessions = worker.log().count("worker ready")
    node.ctl("close_all_connections", "-p", secure.vhost, "tested")
    wait_until(lambda: worker.log().count("worker ready") > sessions, SOON, worker.log)
    assert "mine.pem" in worker.http("/readyz")[1] and "stays in use" in worker.http("/readyz")[1]
    assert worker.wait_ready() and subjects(node)[node.prefix + "worker"][0] == "CN=second"


BROKEN = {
    "missing": "No such file",
    "binary": "no PEM file",
    "half": "no whole private key",
    "no key": "no whole private key",
    "encrypted": "pass phrase",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_key_file_is_one_clear_line(node, secure, broken):
    certificate, _ = node.client
    key = secure.folder / "broken.key"
    whole = node.client[1].read_bytes()
    text = {"binary": b"\xff\xfe", "half": whole[: len(whole) // 2], "no key": certificate.read_bytes(), "encrypted": encrypted(whole)}
    if broken in text:
        key.write_bytes(text[broken])
    worker = secure.spawn(**tls(node, (certificate, key)))
    assert worker.wait(SOON) == 78, worker.log()
    last = worker.log().splitlines()[-1]
    assert str(key) in last and BROKEN[broken] in last, worker.log()
    assert "panicked" not in worker.log()


def encrypted(key):
    from cryptography.hazmat.primitives import serialization

    kept = serialization.BestAvailableEncryption(b"a pass phrase")
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)


def test_a_plain_port_and_an_encrypted_one_are_told_apart(node, secure):
    plain = secure.spawn(name="plain", CELERY_BROKER_URL=node.encrypted(node.least(secure.vhost, "worker")).replace("amqps:", "amqp:"))
    wait_until(lambda: "that port speaks TLS: write amqps://" in plain.http("/readyz")[1], SOON, plain.log)
    wrong = node.least(secure.vhost, "worker").replace("amqp:", "amqps:")
    other = secure.spawn(name="other", CELERY_BROKER_URL=wrong, **tls(node))
    wait_until(lambda: "that port does not speak TLS: write amqp://" in other.http("/readyz")[1], SOON, other.log)


def test_a_login_method_that_the_broker_does_not_offer_is_named(node, secure):
    worker = secure.spawn(CELERY_BROKER_URL=secure.url + "?login_method=EXTERNAL", **tls(node))
    assert worker.wait(SOON) == 78
    assert "does not offer EXTERNAL but" in worker.log() and "AMQPLAIN" in worker.log()


def test_a_worker_logs_in_by_its_certificate_alone(tmp_path):
    settings = {"auth_mechanisms.1": "EXTERNAL", "ssl_cert_login_from": "common_name"}
    node = Encrypted(tmp_path, settings, "rabbitmq_auth_mechanism_ssl")
    (tmp_path / "site").mkdir()
    site = Site(node, tmp_path / "site", full_rights=True)
    try:
        node.ctl("add_user", "client", "unused")
        node.ctl("set_permissions", "-p", site.vhost, "client", ".*", ".*", ".*")
        # Named, and found out as Python's client does.
        for option in ("?login_method=EXTERNAL", ""):
            site.url = f"amqps://localhost:{node.tls_port}/{site.vhost}{option}"
            assert site.start(**tls(node)).stop() == 0, option
        site.url = f"amqps://localhost:{node.tls_port}/{site.vhost}?login_method=PLAIN"
        worker = site.spawn(**tls(node))
        assert worker.wait(40) == 78
        assert "does not offer PLAIN but EXTERNAL" in worker.log()
    finally:
        site.close()
        node.close()
