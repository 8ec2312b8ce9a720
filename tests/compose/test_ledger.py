"""The ledger itself: it must see each fault that is planted, and none where there is none."""

import pytest

from ledger import ABSENT, UNKNOWN, Command, Ledger, checksum, stored_bytes


class Book(Ledger):
    """A ledger whose clock is a counter; commands are named after their order."""

    now = 0

    def tick(self):
        self.now += 1
        return self.now

    def ask(self, op, key="k", value=ABSENT, confirmed=True):
        id = f"c{len(self.commands)}"
        self.send(Command(id, op, key, value, self.tick()))
        if confirmed:
            self.confirm(id)
        return id

    def reply(self, id, result, status="SUCCESS", again=False):
        self.answer(id, self.tick(), status, result, again)

    def stored(self, value, key="k"):
        id = self.ask("store", key, value)
        self.reply(id, receipt(key, value))
        return id

    def deleted(self, key="k"):
        self.reply(self.ask("delete", key), True)

    def read(self, result, op="retrieve", key="k"):
        self.reply(self.ask(op, key), result)


def receipt(key, value, **more):
    return {"key": key, "size": len(stored_bytes(value)), "checksum": checksum(value), "generation": "g1", **more}


@pytest.fixture
def book():
    return Book()


def test_a_run_without_a_fault_is_clean(book):
    book.read(None)
    book.stored("one")
    book.read("one")
    book.read(receipt("k", "one"), "stat")
    book.stored(b"two")
    book.read(b"two")
    book.read(True, "exists")
    book.read(["k"], "list_keys", key="")
    book.deleted()
    book.read(None)
    book.read(False, "exists")
    book.read([], "list_keys", key="")
    verdict = book.judge()
    verdict.settle("k", None, "the workers")
    verdict.settle_bytes("k", None, "the bucket")
    assert verdict.faults() == []
    assert verdict.numbers()["confirmed"] == len(book.commands)


def test_a_lost_store_is_seen_in_either_place(book):
    book.stored("one")
    verdict = book.judge()
    verdict.settle("k", None, "the workers")
    verdict.settle_bytes("k", None, "the bucket")
    verdict.settle("k", UNKNOWN, "the workers")
    assert len(verdict.lost) == 3 and verdict.wrong == []


def test_a_lost_overwrite_is_seen(book):
    book.stored("one")
    book.stored("two")
    verdict = book.judge()
    verdict.settle("k", "one", "the workers")
    verdict.settle_bytes("k", b"one", "the bucket")
    assert len(verdict.lost) == 2


def test_a_delete_that_comes_undone_is_seen(book):
    book.stored("one")
    book.deleted()
    verdict = book.judge()
    verdict.settle_bytes("k", b"one", "the bucket")
    assert len(verdict.lost) == 1


def test_a_foreign_value_in_the_end_is_wrong(book):
    book.stored("one")
    verdict = book.judge()
    verdict.settle("k", "other", "the workers")
    verdict.settle("k", b"one", "the workers")  # another type
    verdict.settle_bytes("k", b"onf", "the bucket")
    assert len(verdict.wrong) == 3 and verdict.lost == []


def test_a_doubled_answer_is_seen_and_a_repeat_counted_apart(book):
    id = book.stored("one")
    book.reply(id, receipt("k", "one"))
    book.reply(id, receipt("k", "one"), again=True)
    assert book.judge().doubled == [] and book.judge().repeats == 1
    book.reply(id, receipt("k", "one", generation="g2"))
    assert len(book.judge().doubled) == 1


def test_a_success_then_a_failure_is_doubled(book):
    id = book.stored("one")
    book.reply(id, {"exc_type": "TypeError", "exc_message": ["x"]}, "FAILURE")
    assert len(book.judge().doubled) == 1


def test_a_read_answered_again_may_differ(book):
    id = book.ask("retrieve")
    book.reply(id, None)
    book.stored("one")
    book.reply(id, "one")
    verdict = book.judge()
    assert verdict.faults() == [] and verdict.repeats == 1


@pytest.mark.parametrize(
    ("op", "first", "second"),
    [
        ("retrieve", "one", "other"),
        ("retrieve", "one", None),
        ("retrieve", "one", "two"),  # not yet sent
        ("exists", True, False),
        ("stat", receipt("k", "one"), receipt("k", "two")),
        ("list_keys", ["k"], []),
    ],
)
@pytest.mark.parametrize("again", [False, True])
def test_every_answer_of_a_read_is_judged_by_its_own_time(book, op, first, second, again):
    book.stored("one")
    id = book.ask(op, key="" if op == "list_keys" else "k")
    book.reply(id, first)
    book.reply(id, second, again=again)
    book.stored("two")
    assert len(book.judge().wrong) == 1
    # What was true when the read was sent stays legal: an answer may be on its way for long.
    book.reply(id, first)
    assert len(book.judge().wrong) == 1


def test_an_error_in_the_second_answer_of_a_read_is_seen(book):
    id = book.ask("retrieve")
    book.reply(id, None)
    book.reply(id, AWAY, "FAILURE")
    assert len(book.judge().wrong) == 1
    assert book.judge({"StorageUnavailable"}).faults() == []


@pytest.mark.parametrize("value", [None, "one", "other", b"two"])
def test_a_read_of_anything_but_the_newest_is_wrong(book, value):
    book.stored("one")
    book.stored("two")
    book.read(value)
    assert len(book.judge().wrong) == 1


@pytest.mark.parametrize(
    ("op", "answer"),
    [("exists", False), ("exists", 1), ("stat", None), ("stat", receipt("k", "one")), ("list_keys", []), ("list_keys", ["k", "x"])],
)
def test_wrong_answers_of_the_other_reads_are_seen(book, op, answer):
    book.stored("one")
    book.stored("two")
    book.read(answer, op)
    assert len(book.judge().wrong) == 1


def test_a_read_beside_a_write_may_say_either_but_nothing_else(book):
    book.stored("one")
    write = book.ask("store", value="two")
    for value in ("one", "two", "three"):
        book.read(value)
    book.reply(write, receipt("k", "two"))
    book.read("one")
    assert [("three" in text, "one" in text) for text in book.judge().wrong] == [(True, True), (False, True)]


def test_a_read_answered_before_a_write_was_sent_cannot_know_it(book):
    book.read("one")
    book.stored("one")
    assert len(book.judge().wrong) == 1


def test_what_was_not_confirmed_may_have_happened_or_not(book):
    book.stored("one")
    book.ask("store", value="two", confirmed=False)
    book.stored("three")
    for value in ("three", "two"):
        book.read(value)
        verdict = book.judge()
        verdict.settle("k", value, "the workers")
        assert verdict.faults() == []
    book.read("one")
    assert len(book.judge().wrong) == 1


def test_an_unconfirmed_but_answered_command_counts(book):
    id = book.ask("store", value="one", confirmed=False)
    book.reply(id, receipt("k", "one"))
    verdict = book.judge()
    verdict.settle("k", None, "the workers")
    assert len(verdict.lost) == 1


def test_who_is_never_answered_is_named(book):
    id = book.ask("store", value="one")
    book.ask("store", "other", "one", confirmed=False)
    assert [id in text for text in book.judge().unanswered] == [True]
    assert [command.id for command in book.waiting()] == [id]


AWAY = {"exc_type": "StorageUnavailable", "exc_message": ["away"]}


def test_a_write_may_not_fail(book):
    book.reply(book.ask("store", value="one"), AWAY, "FAILURE")
    assert len(book.judge({"StorageUnavailable"}).wrong) == 1


def test_a_read_error_is_wrong_unless_a_fault_explains_it(book):
    book.reply(book.ask("retrieve"), AWAY, "FAILURE")
    assert len(book.judge().wrong) == 1
    assert book.judge({"StorageUnavailable"}).faults() == []
    assert book.judge({"StorageUnavailable"}).errors == {"StorageUnavailable": 1}


@pytest.mark.parametrize("answer", [None, {}, receipt("other", "one"), receipt("k", "two"), receipt("k", "one", size=1)])
def test_a_receipt_that_is_not_of_this_store_is_wrong(book, answer):
    book.reply(book.ask("store", value="one"), answer)
    assert len(book.judge().wrong) == 1


def test_a_delete_must_answer_true(book):
    book.reply(book.ask("delete"), False)
    assert len(book.judge().wrong) == 1


def test_an_answer_nobody_asked_for_is_wrong(book):
    book.reply("stranger", None)
    assert len(book.judge().wrong) == 1


def test_messages_with_one_task_id_are_judged_by_their_bodies(book):
    monday, tuesday = (Command(id, "store", "k", value, book.tick(), True, task="nightly") for id, value in (("m", "MONDAY"), ("t", "TUESDAY")))
    for command in (monday, tuesday):
        book.send(command)
    book.answer("m", book.tick(), "SUCCESS", receipt("k", "MONDAY"), task="nightly")
    book.answer("t", book.tick(), "SUCCESS", receipt("k", "MONDAY"), task="nightly")
    verdict = book.judge()
    verdict.settle("k", "MONDAY", "the workers")
    assert (len(verdict.wrong), len(verdict.doubled)) == (1, 0)
    assert "(t)" in verdict.wrong[0]


def test_an_answer_that_names_another_task_is_wrong(book):
    book.send(Command("m", "store", "k", "MONDAY", book.tick(), True, task="nightly"))
    book.answer("m", book.tick(), "SUCCESS", receipt("k", "MONDAY"), task="m")
    verdict = book.judge()
    assert len(verdict.wrong) == len(verdict.unanswered) == 1


def test_waits_and_pauses_are_measured(book):
    slow = book.ask("store", "slow", "x")
    for _ in range(5):
        book.stored("one")
    book.now += 40
    book.reply(slow, receipt("slow", "x"))
    numbers = book.judge().numbers()
    assert numbers["wait"] == 51 and numbers["pause"] == 41
