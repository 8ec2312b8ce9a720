"""What is refused for good is not tried for ever, and what passes is not refused for good."""

import socket
import threading
import uuid

import pytest

from harness import DEAD, QUEUE, TIMEOUT, wait_until

# Above all that is waited for until an answer is given up.
PATIENCE = 120


def empty(site, queue=QUEUE):
    return site.queues().get(queue) == (0, 0)


FRAME = 131_072 - 8  # bytes of properties and headers that one frame takes
LARGE = {
    "one large": {"x-large": "x" * 130_000},
    "a large list": {"x-list": ["x" * 65_000, "y" * 65_000], "x-small": 1},
    "many small": {f"x-{n:05}": "0123456789" for n in range(5_500)},
    "names": {f"x-{n:05}-{'n' * 200}": n for n in range(550)},
    "a forged trace": {"x-death": [{"queue": "q" * 100, "reason": "r" * 1000} for _ in range(100)]},
    "the name of the task": {"task": "t" * 130_000},
}


@pytest.mark.parametrize("what", LARGE)
def test_a_dead_copy_fits_whatever_headers_came(site, what):
    worker = site.start("-c", "1", "--prefetch-multiplier", "2")
    reply = site.raw.reply_queue()
    sent = [f"{what}/{n}" for n in range(5)]
    properties = {"reply_to": reply, "content_type": "application/json", "content_encoding": "utf-8"}
    for name in sent:
        headers = {"task": "filestorage.nope", "id": str(uuid.uuid4()), **LARGE[what], "x-pad": ""}
        size = len(site.raw.message("", headers, message_id=name, **properties)._serialize_properties())
        # As much as the broker takes.
        headers["x-pad"] = "p" * (FRAME - 100 - size)
        site.raw.publish("[[], {}, {}]", headers, message_id=name, **properties)
    assert site.call("store", "after", 1)["key"] == "after"
    wait_until(lambda: empty(site), TIMEOUT, lambda: f"an empty queue: {site.queues()}", 0.3)
    copies = site.raw.drain(DEAD)
    assert sorted(copy.properties["message_id"] for copy in copies) == sent
    for copy in copies:
        assert copy.headers["x-filestorage-dead-reason"] == "not-registered"
        assert copy.headers["x-filestorage-dead-queue"] == QUEUE
        cut = copy.headers["x-filestorage-dead-cut"]
        assert 0 < len(cut) <= 512
        first = cut.split("\u2026")[0].split(", ")[0].removeprefix("x-filestorage-dead-")
        assert first in {*LARGE[what], "x-pad"} and first not in copy.headers
    assert len(site.raw.drain(reply)) == len(sent)
    assert "held back" not in worker.log() and worker.ready()


def full_queue(site, name, length):
    arguments = {"x-max-length": length, "x-overflow": "reject-publish"}
    site.raw.declare(name, arguments=arguments)
    return name


def test_a_full_answer_queue_is_waited_for_and_given_up_aloud(site):
    """One is read after a while and gets everything; of one that nobody reads the rest is given up, and nobody else waits."""
    worker = site.start("-c", "8", "--prefetch-multiplier", "8")
    read, unread = full_queue(site, "answers-read-late", 5), full_queue(site, "answers-never-read", 5)
    sent = {queue: [site.raw.command("store", [f"{queue}/{n}", n], reply_to=queue) for n in range(20)] for queue in (read, unread)}
    for n in range(30):
        assert site.call("store", f"other/{n}", n)["key"] == f"other/{n}", "others wait for nobody"
    wait_until(lambda: "sent apart" in worker.log(), what="a refusal")
    answered = set()

    def all_read():
        answered.update(message.json["task_id"] for message in site.raw.drain(read))
        return answered == {*sent[read]}

    wait_until(all_read, PATIENCE, lambda: f"{len(answered)} of {len(sent[read])} answers", 0.5)
    wait_until(lambda: empty(site), PATIENCE, lambda: f"an empty queue: {site.queues()}", 0.5)
    given_up = set()

    def all_given_up():
        given_up.update(line["task_id"] for line in worker.log_lines() if "answer given up" in line["message"])
        return len(given_up) == 15

    # They keep no command from its end, and are tried for as long as if they did.
    wait_until(all_given_up, PATIENCE, lambda: f"{len(given_up)} answers to be given up", 0.5)
    kept = {message.json["task_id"] for message in site.raw.drain(unread)}
    assert len(kept) == 5 and kept | given_up == {*sent[unread]}
    assert f'filestorage_answers_given_up_total{{reason="full"}} {len(given_up)}\n' in worker.http("/metrics")[1]
    assert all(site.call("retrieve", f"{unread}/{n}") == n for n in range(20))


@pytest.mark.full_rights("limits are set for the vhost and its own user")
def test_a_limit_of_connections_at_the_start_passes(site):
    limited = ("-p", site.vhost)
    site.broker.ctl("set_vhost_limits", *limited, '{"max-connections": 0}')
    worker = site.spawn()

    def waits():
        worker.assert_alive()
        said = [line for line in worker.log_lines() if "trying again" in line["message"]]
        return len(said) >= 3 and all("limit" in line["reason"] and "add_vhost" not in line["reason"] for line in said)

    wait_until(waits, 60, worker.log)
    assert not worker.ready()
    site.broker.ctl("clear_vhost_limits", *limited)
    worker.wait_ready(60)
    assert site.call("store", "k", 1)["key"] == "k"


def test_load_on_the_admin_port_takes_nothing_from_commands(site):
    worker = site.start()
    idle = []
    for _ in range(356):
        connection = socket.create_connection(("127.0.0.1", worker.port))
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n")
        idle.append(connection)
    done, scraped = threading.Event(), [0] * 4

    def scrape(number):
        while not done.is_set():
            assert worker.http("/metrics", timeout=60)[0] == 200
            scraped[number] += 1

    scrapers = [threading.Thread(target=scrape, args=(number,)) for number in range(4)]
    for scraper in scrapers:
        scraper.start()
    results = [site.send("store", f"k/{n}", n) for n in range(1000)]
    assert {result.get(timeout=PATIENCE)["key"] for result in results} == {f"k/{n}" for n in range(1000)}
    assert worker.http("/livez", timeout=30) == (200, "ok\n")
    done.set()
    for scraper in scrapers:
        scraper.join()
    assert min(scraped) > 0
    for connection in idle:
        connection.setblocking(False)

    def open_ones():
        count = 0
        for connection in idle:
            try:
                count += bool(connection.recv(1))
            except BlockingIOError:
                count += 1
            except OSError:
                pass
        return count

    wait_until(lambda: open_ones() == 0, 60, lambda: f"{open_ones()} connections still open", 0.5)
    for connection in idle:
        connection.close()


def test_few_descriptors_cost_time_and_no_command(site):
    site.wrapper = ("bash", "-c", 'ulimit -n 256 && exec "$@"', "bash")
    worker = site.start("-c", "512")
    assert "few files may be open" in worker.log() and "LimitNOFILE" in worker.log()
    results = [site.send("store", f"k/{n}", f"value {n}") for n in range(3000)]
    assert {result.get(timeout=PATIENCE)["key"] for result in results} == {f"k/{n}" for n in range(3000)}
    assert site.call("retrieve", "k/2999") == "value 2999"
    worker.assert_alive()


def test_the_soft_limit_of_descriptors_is_raised(site):
    site.wrapper = ("bash", "-c", 'ulimit -Sn 128 && ulimit -Hn 4096 && exec "$@"', "bash")
    worker = site.start()
    limits = open(f"/proc/{worker.pid}/limits", encoding="ascii").read()
    assert "few files may be open" not in worker.log()
    assert any(line.split()[3:5] == ["4096", "4096"] for line in limits.splitlines() if line.startswith("Max open files"))


def signature(task, *args, **options):
    return {"task": task, "args": list(args), "kwargs": {}, "options": options, "subtask_type": None, "immutable": True}


def grown():
    """A chain whose errback of 1.1 MB belongs to each of its 800 steps."""
    steps = [signature("filestorage.store", f"step/{n}", n, task_id=str(uuid.uuid4())) for n in range(800)]
    errback = signature("t.errback", "x" * 1_100_000)
    chain = {**signature("celery.chain"), "kwargs": {"tasks": steps}, "subtask_type": "chain"}
    return {**chain, "options": {"link_error": [errback]}}


@pytest.mark.parametrize("outcome", ["SUCCESS", "FAILURE"])
def test_follow_ups_too_large_are_not_sent_but_the_answer_is(site, outcome):
    worker = site.start()
    reply = site.raw.reply_queue()
    link = "callbacks" if outcome == "SUCCESS" else "errbacks"
    args = ["k", 1] if outcome == "SUCCESS" else ["../k", 1]
    task_id = site.raw.command("store", args, embed={link: [grown()]}, reply_to=reply)
    answer = site.raw.get(reply)
    assert (answer.json["task_id"], answer.json["status"]) == (task_id, outcome)
    copy = site.raw.get(DEAD)
    assert copy.headers["x-filestorage-dead-reason"] == "follow-ups-too-large" and copy.headers["id"] == task_id
    assert copy.json[2][link][0]["options"]["link_error"][0]["args"] == ["x" * 1_100_000]
    wait_until(lambda: empty(site), TIMEOUT, lambda: f"an empty queue: {site.queues()}", 0.3)
    assert site.raw.drain(DEAD) == [] and not site.call("exists", "step/0")
    assert "follow-ups not sent" in worker.log()
    peak = next(line for line in open(f"/proc/{worker.pid}/status", encoding="ascii") if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 256 << 10, peak
