"""The worker's own queues go away and come back, and a quorum queue of commands keeps what waits for its time."""

import json
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone

import pytest
from celery.exceptions import NotRegistered

from harness import DEAD, METRICS, QUEUE, TIMEOUT, Site, failure, running_undisturbed, wait_events, wait_until

EVENTS = "filestorage.events"
# A queue that is back is found within 5 s.
BACK = 30
# What was parked comes back after 5 s, and then after 30 s.
UNPARKED = 60
DELAYS = "filestorage.delay."


def reason(worker, component):
    """What /readyz says of `events` or `dead_queue`; None when all is well."""
    return json.loads(worker.http("/readyz")[1])["components"][component].get("reason")


def wait_reason(worker, component, part):
    """Waits until that component is degraded for a reason with this part; commands go on, so the worker stays ready."""
    wait_until(lambda: part in (reason(worker, component) or ""), BACK, lambda: f"{part!r}: {worker.http('/readyz')[1]}")
    assert worker.ready()


def wait_well(worker, *components):
    for component in components:
        wait_until(lambda: reason(worker, component) is None, BACK, lambda: worker.http("/readyz")[1], 0.1)


def make(site, *names):
    """Makes own queues again, as an operator does."""
    for name in names:
        site.raw.declare(name)
        if name == METRICS:
            site.raw.channel.queue_bind(METRICS, EVENTS, "#")


def delete(site, *names):
    for name in names:
        site.raw.channel.queue_delete(name)


def send_unknown(site):
    """Sends a command that cannot be run; its failure is answered."""
    return site.app.send_task("nobody.knows.it")


def kept_copy(site):
    """The only copy in the dead queue."""
    wait_until(lambda: DEAD in site.queues(), BACK, site.queues, 0.3)
    message = site.raw.get(DEAD, UNPARKED)
    assert site.raw.count(DEAD) == 0
    return message.headers["task"], message.properties["correlation_id"]


@contextmanager
def stopped(site, *names):
    """Stops the processes of these queues: there, with what they hold, and out of reach, as when their node is down."""
    own = f'{{ok, Queues}} = rabbit_amqqueue_sup_sup:find_for_vhost(<<"{site.vhost}">>)'
    every = "{_, Own, _, _} <- supervisor:which_children(Queues)"
    for name in names:
        queue = f'rabbit_misc:r(<<"{site.vhost}">>, queue, <<"{name}">>)'
        site.broker.ctl(
            "eval",
            f"{own}, {{ok, Queue}} = rabbit_amqqueue:lookup({queue}), Pid = amqqueue:get_pid(Queue),"
            f" [ok] = [supervisor:terminate_child(Own, rabbit_amqqueue) || {every},"
            " lists:keymember(Pid, 2, supervisor:which_children(Own))].",
        )
    yield
    site.broker.ctl(
        "eval",
        f"{own}, [{{ok, _}} = supervisor:restart_child(Own, rabbit_amqqueue) || {every},"
        " lists:keymember(undefined, 2, supervisor:which_children(Own))], ok.",
    )


# --- our own queues --------------------------------------------------------------------------------------------------


@pytest.mark.full_rights("the worker makes the queue again")
def test_a_deleted_dead_queue_is_made_again_for_the_next_copy(site):
    worker = site.start()
    delete(site, DEAD)
    result = send_unknown(site)
    assert isinstance(failure(result), NotRegistered)
    assert kept_copy(site) == ("nobody.knows.it", result.id)
    wait_well(worker, "dead_queue")


def test_a_dead_copy_waits_for_a_queue_it_may_not_declare(site):
    worker = site.start()
    delete(site, DEAD)
    result = send_unknown(site)
    assert isinstance(failure(result), NotRegistered)
    wait_reason(worker, "dead_queue", f"configure permission on queue '{DEAD}'")
    assert site.call("store", "meanwhile", 1)["key"] == "meanwhile"
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what=lambda: f"the copy to be parked: {site.queues()}", step=0.3)
    make(site, DEAD)
    assert kept_copy(site) == ("nobody.knows.it", result.id)
    wait_well(worker, "dead_queue")
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what=site.queues, step=0.2)


def test_events_without_a_queue_are_lost_until_it_is_made_again(site):
    worker = site.start()
    delete(site, METRICS)
    assert site.call("store", "unheard", 1)["key"] == "unheard"
    wait_reason(worker, "events", f"nobody is bound to {EVENTS}")
    make(site, METRICS)
    heard = site.send("store", "heard", 2)
    assert heard.get(timeout=TIMEOUT)["key"] == "heard"
    assert [event["data"]["task_id"] for event in wait_events(site.raw, 1)] == [heard.id]
    wait_well(worker, "events")


@pytest.mark.full_rights("the worker makes the queue again")
def test_a_deleted_command_queue_ends_nothing_that_runs(site):
    second = f"{QUEUE}.second"
    worker = site.spawn(queues=f"{QUEUE},{second}").wait_ready()
    with running_undisturbed(site, worker):
        for number in range(2):
            delete(site, second)
            wait_until(lambda: site.queues().get(second) == (0, 0), BACK, site.queues, 0.1)
            assert site.send("store", f"second/{number}", number, _queue=second).get(timeout=TIMEOUT)["key"]
            wait_well(worker, "queues")


@pytest.mark.full_rights("the worker makes the queue again")
def test_the_next_session_declares_a_deleted_metrics_queue(site):
    worker = site.start()
    delete(site, METRICS)
    site.call("store", "unheard", 1)
    wait_reason(worker, "events", f"nobody is bound to {EVENTS}")
    site.broker.ctl("close_all_connections", "-p", site.vhost, "tested")
    site.reconnect()
    wait_until(lambda: METRICS in site.queues(), BACK, site.queues, 0.3)
    wait_well(worker, "events")
    site.app.close()
    site.app = site.client()
    assert site.call("store", "heard", 2)["key"] == "heard"
    assert [event["data"]["key"] for event in wait_events(site.raw, 1)] == ["heard"]


def test_queues_missing_at_the_start_are_found_later(site):
    delete(site, DEAD, METRICS)
    worker = site.start()
    wait_reason(worker, "dead_queue", f"configure permission on queue '{DEAD}'")
    wait_reason(worker, "events", f"configure permission on queue '{METRICS}'")
    assert site.call("exists", "k") is False
    make(site, DEAD, METRICS)
    result = send_unknown(site)
    assert isinstance(failure(result), NotRegistered)
    assert kept_copy(site) == ("nobody.knows.it", result.id)
    stored = site.send("store", "k", 1)
    assert stored.get(timeout=TIMEOUT)["key"] == "k"
    wait_events(site.raw, lambda found: stored.id in [event["data"]["task_id"] for event in found])
    wait_well(worker, "dead_queue", "events")


@pytest.mark.parametrize("when", ["at the start", "while it works"])
def test_messages_for_a_queue_that_is_down_wait_and_arrive(site, when):
    worker = site.start() if when == "while it works" else None
    with stopped(site, DEAD, METRICS):
        if worker is None:
            worker = site.start()
            wait_reason(worker, "dead_queue", "queue is down")
            wait_reason(worker, "events", "queue is down")
        stored = site.send("store", "k", 1)
        assert stored.get(timeout=TIMEOUT)["key"] == "k"
        unknown = send_unknown(site)
        assert isinstance(failure(unknown), NotRegistered)
        wait_reason(worker, "dead_queue", DEAD)
        wait_reason(worker, "events", METRICS)
        wait_until(lambda: site.queues()[QUEUE] == (0, 0), what=lambda: f"both to be parked: {site.queues()}", step=0.3)
        assert site.call("exists", "k") is True
    assert kept_copy(site) == ("nobody.knows.it", unknown.id)
    wait_events(site.raw, lambda found: stored.id in [event["data"]["task_id"] for event in found], timeout=UNPARKED)
    wait_well(worker, "dead_queue", "events")
    wait_until(lambda: site.queues()[QUEUE] == (0, 0), what=site.queues, step=0.2)


# --- several queues of commands -----------------------------------------------------------------------------------------


@pytest.mark.full_rights("the users of `definitions` have one queue of commands")
@pytest.mark.parametrize("when", ["at the start", "while it works"])
def test_a_consumed_queue_that_is_down_holds_up_no_other(site, when):
    second = f"{QUEUE}.second"
    make(site, second)
    queues = f"{second},{QUEUE}"
    worker = site.start(queues=queues) if when == "while it works" else None
    with stopped(site, second):
        worker = worker or site.start(queues=queues)
        assert site.call("store", "k", 1)["key"] == "k"
        wait_reason(worker, "queues", f"'{second}' is down")
        assert site.call("retrieve", "k") == 1
    wait_well(worker, "queues")
    assert site.call("retrieve", "k", _queue=second) == 1
    assert site.call("retrieve", "k") == 1


@pytest.mark.full_rights("the users of `definitions` have one queue of commands")
def test_a_queue_that_is_back_ends_nothing_that_runs(site):
    second = f"{QUEUE}.second"
    make(site, second)
    with ExitStack() as while_it_runs:
        with stopped(site, second):
            worker = site.start(queues=f"{second},{QUEUE}")
            wait_reason(worker, "queues", f"'{second}' is down")
            while_it_runs.enter_context(running_undisturbed(site, worker))
        wait_well(worker, "queues")
        assert site.call("store", "k", 1, _queue=second)["key"] == "k"
        assert site.call("retrieve", "k") == 1


# --- a quorum queue of commands --------------------------------------------------------------------------------------


@pytest.fixture
def quorum(broker, tmp_path):
    """A site whose queues are quorum queues, made from deploy/rabbitmq/definitions; worker and client have no further rights."""
    site = Site(broker, tmp_path, full_rights=True)
    generation = "3" if broker.ctl("version").strip().startswith("3.") else "4"
    broker.import_definitions(broker.definitions(site.vhost, "--queue-type", "quorum", "--rabbitmq", generation))
    site.url, site.client_url = (broker.least(site.vhost, role) for role in ("worker", "producer"))
    site.app.close()
    site.app = site.client(task_default_queue_type="quorum")
    yield site
    site.close()


def start(site):
    return site.start(CELERY_TASK_DEFAULT_QUEUE_TYPE="quorum")


def soon(seconds):
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def types(site):
    rows = site.broker.ctl("list_queues", "-p", site.vhost, "name", "type", "--formatter", "json")
    return {row["name"]: row["type"] for row in json.loads(rows)}


def wait_parked(site, count):
    """Waits until so many commands lie in the delay queues and none in the worker."""

    def parked():
        queues = site.queues()
        waiting = sum(sum(numbers) for name, numbers in queues.items() if name.startswith(DELAYS))
        return queues[QUEUE] == (0, 0) and waiting == count

    wait_until(parked, what=site.queues, step=0.2)


def assert_once(site, ids):
    """Nothing of these commands is left anywhere, and each ran once; an answer that is sent again has the same event."""

    def left():
        return {name: numbers for name, numbers in site.queues().items() if name != METRICS and numbers != (0, 0)}

    # A quorum queue counts anew every 5 s only.
    wait_until(lambda: left() == {}, BACK, left, 0.5)
    last = site.send("exists", "nothing")
    last.get(timeout=TIMEOUT)
    found = wait_events(site.raw, lambda found: last.id in [event["data"]["task_id"] for event in found])
    events = {event["id"]: event["data"]["task_id"] for event in found}
    assert sorted(events.values()) == sorted([*ids, last.id])


def test_commands_with_an_eta_run_once_each_in_time_order(quorum):
    start(quorum)
    kinds = types(quorum)
    assert kinds[QUEUE] == "quorum" and {kind for name, kind in kinds.items() if name.startswith(DELAYS)} == {"quorum"}
    # The latest is sent first.
    dues = {f"k/{seconds}": soon(seconds) for seconds in (6, 4.5, 3, 1.5)}
    results = {key: quorum.send("store", key, key, _eta=due) for key, due in dues.items()}
    results["k/countdown"], dues["k/countdown"] = quorum.send("store", "k/countdown", 1, _countdown=2), soon(2)
    stored = {key: datetime.fromisoformat(result.get(timeout=TIMEOUT)["stored_at"]) for key, result in results.items()}
    for key, due in dues.items():
        assert stored[key] >= due - timedelta(milliseconds=50), key
    order = [key for key in sorted(stored, key=stored.get) if key != "k/countdown"]
    assert order == ["k/1.5", "k/3", "k/4.5", "k/6"]
    assert_once(quorum, [result.id for result in results.values()])


@pytest.mark.parametrize("what", ["worker", "worker and broker"])
def test_parked_commands_outlive_what_is_killed_and_run_once(quorum, what):
    if what != "worker" and not quorum.broker.can_restart:
        pytest.skip("this broker may not be restarted")
    worker = start(quorum)
    due = soon(8 if what == "worker" else 15)
    results = [quorum.send("store", f"k/{number}", number, _eta=due) for number in range(20)]
    wait_parked(quorum, 20)
    worker.kill()
    asked = []
    if what != "worker":
        quorum.broker.kill()
        quorum.broker.start()
        quorum.reconnect()
        # Celery's queue for answers went with the broker. A command makes it anew, before the times of the others are up or not.
        asked = [quorum.send("exists", "k/0")]
    start(quorum)
    receipts = [result.get(timeout=2 * TIMEOUT) for result in results]
    for receipt in receipts:
        assert datetime.fromisoformat(receipt["stored_at"]) >= due - timedelta(milliseconds=5), receipt
    assert_once(quorum, [result.id for result in [*results, *asked]])
    # Another run would have written another generation.
    for receipt in receipts:
        assert quorum.call("stat", receipt["key"])["generation"] == receipt["generation"]
