"""Large values pass by reference: files below the exchange directories, in and out."""

import json
import os
import re
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from harness import BINARY, QUEUE, TIMEOUT, Raw, Site, failure, wait_events, wait_until

MIB = 1 << 20


@pytest.fixture(scope="module")
def place(broker, tmp_path_factory):
    """A site whose worker may exchange files; its folder `exchange` is listed, `outside` is not."""
    site = Site(broker, tmp_path_factory.mktemp("references"))
    site.exchange = site.folder / "ex change"
    site.exchange.mkdir()
    (site.folder / "outside").mkdir()
    (site.folder / "outside" / "secret").write_text("hunter2")
    try:
        worker = site.start(EXCHANGE_DIRECTORIES=f"/nowhere/at/all:{site.exchange}")
        yield site
        worker.assert_alive()
    finally:
        site.close()


@pytest.fixture
def folder(place, key):
    """A fresh folder below the exchange directory."""
    folder = place.exchange / key
    folder.mkdir()
    return folder


def ref(path):
    return {"$ref": path if isinstance(path, str) else path.as_uri()}


def rss_peak(worker):
    """Most memory the worker ever had, in bytes."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+) kB$", status, re.M).group(1)) * 1024


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plain.bin", b"\x00\xffbytes"),
        ("a b.json", b'{"a": 1}'),
        ("žluť-𝄞.txt", "žluť".encode()),
        ("100%25.txt", b"text"),
        ("%2e%2e", b"dots"),
        ("line\nfeed", b"x"),
        ("a?b#c;d&e=f+g", b"x"),
        ("empty", b""),
        ("x" * 255, b"long name"),
    ],
    ids=ascii,
)
def test_a_file_is_stored_as_bytes_and_written_back(place, folder, key, name, data):
    source = folder / name
    source.write_bytes(data)
    receipt = place.call("store", key, ref(source), {"from": name})
    assert (receipt["kind"], receipt["content_type"], receipt["size"]) == ("bytes", "application/octet-stream", len(data))
    assert place.call("retrieve", key) == data
    stat = place.call("stat", key)
    assert stat.pop("metadata") == {"from": name}
    assert stat == receipt
    source.unlink()
    assert place.call("retrieve", key, destination=source.as_uri()) == receipt
    assert source.read_bytes() == data
    assert [path.name for path in folder.iterdir()] == [name]


def test_what_is_given_goes_before_what_is_guessed(place, folder, key):
    (folder / "in").write_bytes(b"%PDF")
    receipt = place.call("store", key, ref(folder / "in"), content_type="application/pdf", ttl_seconds=3600)
    assert receipt["content_type"] == "application/pdf"
    assert receipt["expires_at"] is not None
    error = failure(place.send("store", key, ref(folder / "in"), if_absent=True))
    assert type(error).__name__ == "PreconditionFailed"


@pytest.mark.parametrize(
    "value", ["text žluť", b"\xff\x00", {"a": [1, None, 2**70]}, None, "", 1.5], ids=["text", "bytes", "json", "none", "empty", "float"]
)
def test_any_value_is_written_as_the_bytes_it_is_kept_as(place, folder, key, value):
    receipt = place.call("store", key, value)
    out = folder / "out"
    out.write_text("something longer that was there before")
    out.chmod(0o640)
    with out.open() as reader:
        assert place.call("retrieve", key, destination=out.as_uri()) == receipt
        assert reader.read() == "something longer that was there before", "who reads the old file goes on reading it"
    written = out.read_bytes()
    assert len(written) == receipt["size"]
    if isinstance(value, str):
        assert written == value.encode()
    elif isinstance(value, bytes):
        assert written == value
    else:
        assert json.loads(written) == value
    assert out.stat().st_mode & 0o777 == 0o640
    assert list(folder.iterdir()) == [out]


def test_a_range_is_written_and_the_whole_s_receipt_answered(place, folder, key):
    receipt = place.call("store", key, "0123456789")
    out = folder / "out"
    for options, wanted in [
        ({"offset": 3}, b"3456789"),
        ({"length": 4}, b"0123"),
        ({"offset": 2, "length": 3}, b"234"),
        ({"offset": 99}, b""),
    ]:
        assert place.call("retrieve", key, destination=out.as_uri(), **options) == receipt
        assert out.read_bytes() == wanted
    place.call("store", key, {"json": 1})
    assert type(failure(place.send("retrieve", key, destination=out.as_uri(), offset=1))) is ValueError
    assert out.read_bytes() == b""


def test_a_missing_key_is_null_and_writes_nothing(place, folder, key):
    assert place.call("retrieve", key, destination=(folder / "out").as_uri()) is None
    (folder / "old").write_text("old")
    assert place.call("retrieve", key, destination=(folder / "old").as_uri()) is None
    assert [path.read_text() for path in folder.iterdir()] == ["old"]


def ways_out(place, folder):
    """References that must not be followed."""
    secret = place.folder / "outside" / "secret"
    (folder / "inside").write_text("inside")
    (folder / "file-link").symlink_to(secret)
    (folder / "relative-link").symlink_to(os.path.relpath(secret, folder))
    (folder / "folder-link").symlink_to(secret.parent)
    (folder / "inward-link").symlink_to(folder / "inside")
    (folder / "root").symlink_to("/")
    (folder / "proc").symlink_to("/proc/self")
    base, up = folder.as_uri(), len(folder.relative_to(place.folder).parts)
    dots, encoded = "/".join([".."] * up), "/".join(["%2e%2E"] * up)
    return [
        secret.as_uri(),
        "file:///etc/hostname",
        f"{base}/{dots}/outside/secret",
        f"{base}/{encoded}/outside/secret",
        f"{base}/./inside",
        f"{base}//inside",
        f"{base}/inside/",
        f"{base}/..%2f..%2foutside%2fsecret",
        f"{base}/inside%00",
        f"{base}/file-link",
        f"{base}/relative-link",
        f"{base}/folder-link/secret",
        f"{base}/inward-link",
        f"{base}/root/etc/hostname",
        f"{base}/proc/environ",
        f"{base}/inside?query",
        f"{base}/inside#fragment",
        base.replace("file:///", "file://elsewhere/") + "/inside",
        (place.folder / "ex change2" / "inside").as_uri(),
        place.exchange.as_uri(),
        base,
        "file:///",
        "file://",
    ]


def test_nothing_outside_the_exchange_directories_is_read(place, folder, key):
    for text in ways_out(place, folder):
        error = failure(place.send("store", key, ref(text)))
        assert type(error) is ValueError, (text, error)
        assert "hunter2" not in str(error)
        assert "/nowhere/at/all" not in str(error), "what else is listed is nobody's business"
    assert place.call("exists", key) is False


def test_nothing_outside_the_exchange_directories_is_written(place, folder, key):
    place.call("store", key, "mine")
    outside = place.folder / "outside"
    before = sorted(outside.iterdir())
    for text in ways_out(place, folder):
        if text.endswith("-link"):
            continue  # a link in a file's place is replaced, see below
        error = failure(place.send("retrieve", key, destination=text))
        assert type(error) is ValueError, (text, error)
    assert sorted(outside.iterdir()) == before
    assert (folder / "inside").read_text() == "inside"
    assert not (place.folder / "ex change2").exists()
    link = folder / "file-link"
    place.call("retrieve", key, destination=link.as_uri())
    assert not link.is_symlink()
    assert link.read_text() == "mine"
    assert (outside / "secret").read_text() == "hunter2"


def test_a_link_swapped_in_at_any_moment_lets_nothing_out(place, folder, key):
    inside, link, spare = folder / "in", folder / "link", folder / "spare"
    inside.mkdir()
    (inside / "secret").write_text("harmless")
    link.symlink_to(place.folder / "outside")
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            inside.rename(spare)
            link.rename(inside)
            inside.rename(link)
            spare.rename(inside)

    swapper = threading.Thread(target=swap, daemon=True)
    swapper.start()
    try:
        results = [place.send("store", f"{key}/{n}", ref(inside / "secret")) for n in range(400)]
        outcomes = [result.get(timeout=TIMEOUT, propagate=False) for result in results]
    finally:
        stop.set()
        swapper.join()
    for n, outcome in enumerate(outcomes):
        if isinstance(outcome, Exception):
            assert isinstance(outcome, (ValueError, OSError)), outcome
            assert place.call("exists", f"{key}/{n}") is False
        else:
            assert place.call("retrieve", f"{key}/{n}") == b"harmless"


def test_what_is_no_file_neither_blocks_nor_is_replaced(place, folder, key):
    place.call("store", key, "old")
    os.mkfifo(folder / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    old = os.getcwd()
    os.chdir(folder)  # the path of a socket must be short
    try:
        listener.bind("socket")
    finally:
        os.chdir(old)
    (folder / "folder").mkdir()
    for name in ("pipe", "socket", "folder"):
        for result in (
            place.send("store", key, ref(folder / name)),
            place.send("retrieve", key, destination=(folder / name).as_uri()),
        ):
            assert type(failure(result)) is ValueError
    listener.close()
    assert (folder / "pipe").is_fifo()
    assert (folder / "folder").is_dir()
    assert place.call("retrieve", key) == "old"


def test_a_missing_file_is_pythons_own_error(place, folder, key):
    for path in (folder / "none", folder / "none" / "deeper", Path("/nowhere/at/all/a b")):
        error = failure(place.send("store", key, ref(path)))
        assert type(error) is FileNotFoundError
        assert (error.errno, error.strerror, error.filename) == (2, "No such file or directory", str(path))
    place.call("store", key, "value")
    error = failure(place.send("retrieve", key, destination=(folder / "none" / "out").as_uri()))
    assert type(error) is FileNotFoundError
    assert (error.errno, error.filename) == (2, str(folder / "none")), "the folder is what is missing"
    (folder / "file").write_text("")
    error = failure(place.send("store", key, ref(folder / "file" / "deeper")))
    assert type(error) is NotADirectoryError
    assert not (folder / "none").exists()


def test_what_the_worker_may_not_touch_is_a_permission_error(site, key):
    exchange = site.folder / "exchange"
    exchange.mkdir()
    if os.geteuid() == 0:
        # Root may do everything unless it is told otherwise.
        site.wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    site.start(EXCHANGE_DIRECTORIES=exchange)
    (exchange / "locked").write_text("secret")
    (exchange / "locked").chmod(0)
    error = failure(site.send("store", key, ref(exchange / "locked")))
    assert type(error) is PermissionError
    assert (error.errno, error.filename) == (13, str(exchange / "locked"))
    site.call("store", key, "value")
    exchange.chmod(0o555)
    try:
        error = failure(site.send("retrieve", key, destination=(exchange / "out").as_uri()))
    finally:
        exchange.chmod(0o755)
    assert type(error) is PermissionError
    assert error.errno == 13
    assert [path.name for path in exchange.iterdir()] == ["locked"]


def test_a_file_that_changes_meanwhile_is_an_integrity_error(place, folder, key):
    source = folder / "in"
    source.write_bytes(bytes(8 * MIB))
    place.call("store", key, "old")
    stop = threading.Event()

    def change():
        # No number comes twice, so whoever reads the beginning twice reads two things.
        number = 0
        with open(source, "r+b", buffering=0) as file:
            while not stop.is_set():
                number += 1
                os.pwrite(file.fileno(), number.to_bytes(8, "big"), 0)

    writer = threading.Thread(target=change, daemon=True)
    writer.start()
    try:
        wait_until(lambda: source.read_bytes()[:8] != bytes(8), what="the first change")

        def torn():
            """On a busy machine the writer may get no time while the file is read: what is stored then is whole."""
            place.call("store", key, "old")
            result = place.send("store", key, ref(source))
            result.get(timeout=TIMEOUT, propagate=False)
            return result

        result = wait_until(lambda: (found := torn()).failed() and found, what="a change while the file is read")
        error = failure(result)
    finally:
        stop.set()
        writer.join()
    assert type(error).__name__ == "IntegrityError"
    assert place.call("retrieve", key) == "old"
    assert place.call("store", key, ref(source))["size"] == 8 * MIB, "once it stays as it is, it is stored"


@pytest.mark.parametrize(
    "value",
    [
        {"$ref": "#/components/schemas/a"},
        {"$ref": "other.json"},
        {"$ref": "https://example.org/a"},
        {"$ref": 1},
        {"$ref": "file:///etc/hostname", "more": 1},
        [{"$ref": "file:///etc/hostname"}],
        {"a": {"$ref": "file:///etc/hostname"}},
        "file:///etc/hostname",
    ],
    ids=repr,
)
def test_everything_else_with_a_ref_is_a_value(place, key, value):
    assert place.call("store", key, value)["kind"] in ("json", "text")
    assert place.call("retrieve", key) == value


def test_a_destination_must_be_a_place(place, key):
    place.call("store", key, "value")
    for wrong in (5, True, ["file:///a"], {"$ref": "file:///a"}, b"\xff"):
        assert type(failure(place.send("retrieve", key, destination=wrong))) is TypeError
    for wrong in ("", "/tmp/a", "a", "gs://bucket", "s3://b/../a", "https://example.org/o?X-Goog-Signature=hunter2"):
        error = failure(place.send("retrieve", key, destination=wrong))
        assert type(error) is ValueError
        assert "hunter2" not in str(error), "a URL may be a secret"
    assert "X-Goog-Signature" not in place.workers[0].log()
    assert place.call("retrieve", key, destination=None) == "value"


def test_without_exchange_directories_no_file_is_touched(shared, key, tmp_path):
    (tmp_path / "in").write_text("secret")
    error = failure(shared.send("store", key, ref(tmp_path / "in")))
    assert type(error) is ValueError
    assert "exchange_directories" in str(error)
    shared.call("store", key, "value")
    error = failure(shared.send("retrieve", key, destination=(tmp_path / "out").as_uri()))
    assert type(error) is ValueError
    assert not (tmp_path / "out").exists()


def test_a_signed_url_needs_a_bucket(shared, key):
    for options in ({}, {"method": "PUT"}, {"expires_in": 604800}):
        error = failure(shared.send("signed_url", key, **options))
        assert type(error) is ValueError
        assert "bucket" in str(error)
    for options in ({"method": "get"}, {"method": "DELETE"}, {"expires_in": 0}, {"expires_in": 604801}, {"expires_in": -1}):
        error = failure(shared.send("signed_url", key, **options))
        assert type(error) is ValueError
        assert "bucket" not in str(error)
    for options in ({"method": 1}, {"expires_in": "3600"}, {"expires_in": 1.5}, {"expires_in": True}):
        assert type(failure(shared.send("signed_url", key, **options))) is TypeError


def test_without_a_bucket_nothing_waits_to_be_sent(shared):
    assert shared.call("sync") == 0


def test_events_tell_of_the_value_that_passed(place, folder, key):
    data = b"x" * 1000
    (folder / "in").write_bytes(data)
    stored = place.send("store", key, ref(folder / "in"))
    receipt = stored.get(timeout=TIMEOUT)
    read = place.send("retrieve", key, destination=(folder / "out").as_uri())
    read.get(timeout=TIMEOUT)
    missed = place.send("store", key, ref(folder / "none"))
    failure(missed)
    ids = [stored.id, read.id, missed.id]
    found = wait_events(place.raw, lambda events: {event["data"]["task_id"] for event in events} >= set(ids))
    by_id = {event["data"]["task_id"]: event["data"] for event in found}
    for task_id, operation in ((stored.id, "store"), (read.id, "retrieve")):
        told = by_id[task_id]
        assert (told["operation"], told["outcome"], told["key"], told["backend"]) == (operation, "succeeded", key, "local")
        assert (told["size"], told["stored_size"]) == (1000, receipt["stored_size"])
    assert by_id[missed.id]["error"]["type"] == "FileNotFoundError"


def test_a_redelivered_retrieve_does_not_write_its_file_again(site, key):
    exchange = site.folder / "exchange"
    exchange.mkdir()
    worker = site.start(EXCHANGE_DIRECTORIES=exchange)
    site.call("store", key, "first")
    reply = site.raw.reply_queue()
    out = exchange / "out"
    calls = {"A": (key, out), "B": ("missing", exchange / "never")}
    answers = {}
    for task_id, (name, path) in calls.items():
        site.raw.command("retrieve", [name], {"destination": path.as_uri()}, task_id=task_id, reply_to=reply)
        answers[task_id] = site.raw.get(reply).json
        assert answers[task_id]["status"] == "SUCCESS"
    assert out.read_text() == "first"
    assert answers["B"]["result"] is None
    out.unlink()  # whoever asked has taken it
    site.call("store", key, "second")
    site.call("store", "missing", "there now")
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what="the acknowledgements", step=0.1)
    # Without the broker's close-ok nobody knows whether they arrived.
    worker.kill()
    wait_until(lambda: site.raw.channel.queue_declare(QUEUE, passive=True).consumer_count == 0, what="its consumer's end", step=0.1)

    for task_id, (name, path) in calls.items():
        site.raw.command("retrieve", [name], {"destination": path.as_uri()}, task_id=task_id, reply_to=reply)
    # Taken and given back, the messages count as redelivered.
    taken = Raw(site.broker, site.vhost)
    for _ in calls:
        assert taken.channel.basic_get(QUEUE) is not None
    taken.close()
    wait_until(lambda: site.raw.count(QUEUE) == len(calls), what="the messages back in their queue")
    site.start(EXCHANGE_DIRECTORIES=exchange)
    for _ in calls:
        again = site.raw.get(reply).json
        assert (again["status"], again["result"]) == ("SUCCESS", answers[again["task_id"]]["result"])
    assert list(exchange.iterdir()) == []


def test_a_quarter_of_a_gigabyte_passes_in_64_mib(site, key):
    exchange = site.folder / "exchange"
    exchange.mkdir()
    worker = site.start(EXCHANGE_DIRECTORIES=exchange, MAX_REPLY_BYTES=65536)
    block = os.urandom(MIB)
    with open(exchange / "in", "wb") as file:
        for number in range(256):
            file.write(number.to_bytes(8, "big") + block[8:])
    receipt = site.send("store", key, ref(exchange / "in")).get(timeout=120)
    assert receipt["size"] == 256 * MIB
    assert site.send("retrieve", key, destination=(exchange / "out").as_uri()).get(timeout=120) == receipt
    with open(exchange / "in", "rb") as one, open(exchange / "out", "rb") as other:
        while chunk := one.read(MIB):
            assert chunk == other.read(MIB)
        assert not other.read(1)
    options = {"offset": 100 * MIB, "length": 8}
    site.call("retrieve", key, destination=(exchange / "part").as_uri(), **options)
    assert (exchange / "part").read_bytes() == (100).to_bytes(8, "big")
    peak = rss_peak(worker)
    assert peak < 64 * MIB, f"{peak / MIB:.1f} MiB"
    print(f"256 MiB in and out by reference: {peak / MIB:.1f} MiB at most")


def test_a_bucket_not_listed_is_refused_without_a_request(broker, tmp_path, key):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                asked.append(connection.recv(4096))
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        address = "127.0.0.1:{}".format(server.getsockname()[1])
        site = Site(broker, tmp_path)
        try:
            # Whoever answers for credentials or buckets would be asked here.
            site.start(
                GCE_METADATA_HOST=address,
                AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://{address}",
                AWS_METADATA_ENDPOINT=f"http://{address}",
                AWS_ENDPOINT_URL=f"http://{address}",
                HTTP_PROXY=f"http://{address}",
                HTTPS_PROXY=f"http://{address}",
                EXCHANGE_BUCKETS="gs://listed,s3://listed",
            )
            site.call("store", key, "value")
            for bucket in ("gs://payroll", "s3://payroll", "gs://listed2", "s3://www"):
                for error in (
                    failure(site.send("store", key, ref(f"{bucket}/2024/salaries.csv"))),
                    failure(site.send("retrieve", key, destination=f"{bucket}/2024/salaries.csv")),
                    failure(site.send("retrieve", "nothing", destination=f"{bucket}/2024/salaries.csv")),
                ):
                    assert type(error) is PermissionError, error
                    assert "exchange_buckets" in str(error) and error.filename == f"{bucket}/2024/salaries.csv"
            assert site.call("retrieve", key) == "value"
            assert asked == []
        finally:
            site.close()
            server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("inside", [".", "storage", "storage/journal", "link/x", "storage/../storage/not/yet"])
def test_an_exchange_directory_over_the_store_stops_the_start(shared, tmp_path, inside):
    (tmp_path / "storage" / "journal").mkdir(parents=True)
    (tmp_path / "link").symlink_to("storage")
    exchange = f"{tmp_path}/{inside}"
    for command in ("worker", "doctor"):
        env = shared.env(EXCHANGE_DIRECTORIES=exchange, LOCAL_STORAGE_PATH=f"{tmp_path}/storage")
        done = subprocess.run([str(BINARY), command], env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        assert done.returncode == 78, done
        said = done.stdout + done.stderr
        assert "exchange_directories" in said and exchange in said and f"{tmp_path}/storage" in said
