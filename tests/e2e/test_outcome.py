"""`filestorage.outcome`: a caller that lost its reply queue asks what became of its command."""

from harness import failure, wait_until


def test_the_outcome_of_a_write_is_told_by_its_id(site):
    site.start()
    assert site.call("outcome", "never-sent") == {"state": "unknown", "task": None, "finished_at": None, "answer": None}
    stored = site.send("store", "k", "value")
    receipt = stored.get(timeout=60)
    told = site.call("outcome", stored.id)
    assert (told["state"], told["task"]) == ("done", "filestorage.store")
    assert told["answer"] == {"status": "SUCCESS", "result": receipt}
    assert told["finished_at"].endswith("Z")
    refused = site.send("store", "k", "other", if_absent=True)
    assert type(failure(refused)).__name__ == "PreconditionFailed"
    told = site.call("outcome", refused.id)
    assert told["answer"]["status"] == "FAILURE" and told["answer"]["result"]["exc_type"] == "PreconditionFailed"


def test_answers_of_reads_are_not_kept(site):
    site.start()
    site.call("store", "k", "top secret")
    read = site.send("retrieve", "k")
    assert read.get(timeout=60) == "top secret"
    told = site.call("outcome", read.id)
    assert (told["state"], told["task"], told["answer"]) == ("done", "filestorage.retrieve", None)


def test_the_outcome_is_known_while_it_runs_and_after_a_kill(site):
    worker = site.start()
    with site.held_writes("k"):
        running = site.send("store", "k", 1)
        wait_until(lambda: site.call("outcome", running.id)["state"] == "running", 20, "running")
    running.get(timeout=60)
    worker.kill()
    site.start()
    assert site.call("outcome", running.id)["answer"]["status"] == "SUCCESS"
    # Ids are used again: the newest counts.
    again = site.app.send_task("filestorage.delete", ["k"], task_id=running.id)
    again.get(timeout=60)
    wait_until(lambda: site.call("outcome", running.id)["task"] == "filestorage.delete", 10, "the newest")
