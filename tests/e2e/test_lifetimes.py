"""How long a value lives and what its header says, by the arguments and by the metadata."""

from datetime import date, datetime, timedelta, timezone

import pytest

from harness import failure

NEVER = datetime.max
LATER = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=30)


@pytest.mark.parametrize(
    "never",
    [NEVER, NEVER.replace(tzinfo=timezone.utc), NEVER.replace(tzinfo=timezone(timedelta(hours=-14))), NEVER.isoformat()],
    ids=str,
)
def test_the_end_of_the_calendar_is_never(shared, key, never):
    assert shared.call("store", key, 1, expires_at=never)["expires_at"] is None
    assert shared.call("exists", key) is True


@pytest.mark.parametrize("year", [2100, 9998, 9999])
def test_a_time_far_away_is_taken(shared, key, year):
    at = datetime(year, 6, 1, 12, tzinfo=timezone.utc)
    for given in (at, at.isoformat(), at.replace(tzinfo=None)):
        assert datetime.fromisoformat(shared.call("store", key, 1, expires_at=given)["expires_at"]) == at


def test_a_date_is_the_wrong_type(shared, key):
    error = failure(shared.send("store", key, 1, expires_at=date(2100, 1, 2)))
    assert type(error) is TypeError and "not date" in str(error) and "datetime" in str(error)
    assert shared.call("exists", key) is False


@pytest.mark.parametrize("seconds", [0, -1, -0.5, 1e12, 10**30, float("inf"), float("nan")], ids=str)
def test_a_time_to_live_has_limits(shared, key, seconds):
    error = failure(shared.send("store", key, 1, ttl_seconds=seconds))
    assert type(error) is ValueError and "above 0 and at most 31557600000" in str(error)
    assert shared.call("exists", key) is False


def test_the_longest_time_to_live(shared, key):
    assert shared.call("store", key, 1, ttl_seconds=31_557_600_000)["expires_at"].startswith("30")


@pytest.mark.parametrize("at", [LATER, LATER.isoformat(), LATER.isoformat().replace("+00:00", "Z")], ids=["typed", "text", "Z"])
def test_metadata_may_name_type_and_expiry(shared, key, at):
    metadata = {"content_type": "text/csv", "expires_at": at, "created_by": "analysis", "tags": ["a", "b"]}
    receipt = shared.call("store", key, "a,b", metadata)
    assert (receipt["content_type"], receipt["kind"]) == ("text/csv", "text")
    assert datetime.fromisoformat(receipt["expires_at"]) == LATER
    assert shared.call("stat", key)["metadata"] == metadata


def test_arguments_come_before_metadata(shared, key):
    metadata = {"content_type": "text/csv", "expires_at": LATER.isoformat()}
    receipt = shared.call("store", key, "a,b", metadata, content_type="text/plain", ttl_seconds=60)
    assert receipt["content_type"] == "text/plain"
    assert datetime.fromisoformat(receipt["expires_at"]) < LATER - timedelta(days=1)
    assert shared.call("store", key, "a,b", metadata, expires_at=NEVER)["expires_at"] is None
    assert shared.call("stat", key)["metadata"] == metadata


def test_unusable_metadata_is_kept_and_logged_once(site):
    worker = site.start()
    unusable = [
        {"content_type": "csv"},
        {"content_type": 5},
        {"expires_at": LATER.replace(tzinfo=None).isoformat()},
        {"expires_at": "2020-01-02T03:04:05+00:00"},
        {"expires_at": date(2100, 1, 2)},
        {"expires_at": 4102444800},
        {"expires_at": "secret"},
    ]
    for n, metadata in enumerate(unusable):
        receipt = site.call("store", f"said/{n}", "x", metadata)
        assert (receipt["content_type"], receipt["expires_at"]) == ("text/plain; charset=utf-8", None), metadata
        assert site.call("stat", f"said/{n}")["metadata"] == metadata
    for name, key in [("content_type", "said/0"), ("expires_at", "said/2")]:
        lines = [line for line in worker.log_lines() if f"`{name}` in metadata" in str(line)]
        assert len(lines) == 1 and key in str(lines[0]), lines
    assert "secret" not in worker.log()
