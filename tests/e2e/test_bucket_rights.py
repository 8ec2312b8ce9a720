"""The rights in deploy/bucket/: enough for everything a worker does, not a right too many, and no other bucket."""

import os
import uuid

import boto3
import botocore.config
import botocore.exceptions
import pytest

from buckets import BucketSite, S3Server, gcs_role
from harness import TIMEOUT, failure

LARGE = 20 << 20  # bytes; sent in parts


def restricted(broker, folder, server, **options):
    """A site whose worker may use its own bucket only."""
    site = BucketSite(broker, folder, server, **options)
    if site.kind == "gcs":
        site.proxy.close()
        permit = options.get("permit", gcs_role())
        site.proxy = type(site.proxy)(server.url, "gcs", permit=permit, on=[site.bucket])
    return site


@pytest.fixture(params=["gcs", "s3"])
def place(request, broker, tmp_path):
    site = restricted(broker, tmp_path, request.getfixturevalue(request.param))
    yield site
    site.close()


def test_the_role_is_enough_for_everything(place):
    exchange = place.folder / "exchange"
    exchange.mkdir()
    # Bytes that no codec makes smaller.
    (exchange / "large").write_bytes(os.urandom(LARGE))
    place.start(EXCHANGE_DIRECTORIES=exchange)
    receipt = place.call("store", "a", "first")
    assert receipt["backend"] == place.kind and not receipt["pending_sync"]
    assert place.call("store", "a", "second", if_generation=receipt["generation"])["generation"] != receipt["generation"]
    assert place.call("retrieve", "a") == "second"
    assert place.call("retrieve", "a", offset=1, length=3) == b"eco"
    assert place.call("exists", "nothing") is False and place.call("retrieve", "nothing") is None
    for _ in range(2):  # the second time over what is there
        place.send("store", "large", {"$ref": (exchange / "large").as_uri()}).get(timeout=60)
    place.send("retrieve", "large", destination=(exchange / "copy").as_uri()).get(timeout=60)
    assert (exchange / "copy").read_bytes() == (exchange / "large").read_bytes()
    assert place.call("stat", "large")["size"] == LARGE
    assert place.call("versions", "a")[0]["is_current"] is True
    assert place.call("list_keys") == ["a", "large"]
    place.proxy.down()
    assert place.send("store", "late", 1).get(timeout=60)["pending_sync"] is True
    place.proxy.up()
    assert place.send("sync").get(timeout=60) is not None
    assert place.call("delete", "a") is True and place.call("delete", "large") is True
    done = place.run("doctor")
    assert done.returncode == 0, done.stdout
    assert not place.proxy.log(status=403), "nothing was asked that the role does not hold"


def test_another_bucket_is_out_of_reach(place):
    server = place.server
    if place.kind == "gcs":
        other = server.bucket()
    else:
        other = f"foreign-{uuid.uuid4().hex[:8]}"
        server.client.create_bucket(Bucket=other)
    scheme = {"gcs": "gs", "s3": "s3"}[place.kind]
    try:
        server.write(other, "secret", b"of somebody else")
        # Listed, so that the place itself is asked.
        place.start(EXCHANGE_BUCKETS=f"{scheme}://{other}")
        taken = failure(place.send("store", "k", {"$ref": f"{scheme}://{other}/secret"}))
        assert type(taken) is PermissionError and other in str(taken)
        place.call("store", "mine", "x")
        given = failure(place.send("retrieve", "mine", destination=f"{scheme}://{other}/forged"))
        assert type(given) is PermissionError and other in str(given)
        assert server.names(other) == ["secret"]
    finally:
        server.delete(other, "secret")
        if place.kind == "s3":
            server.client.delete_bucket(Bucket=other)


OPERATIONS = {
    "storage.objects.get": lambda site: site.send("retrieve", "there"),
    "storage.objects.create": lambda site: site.send("store", "new", 1),
    "storage.objects.delete": lambda site: site.send("store", "there", 2),
    "storage.objects.list": lambda site: site.send("list_keys"),
}


@pytest.mark.parametrize("missing", OPERATIONS)
def test_no_permission_of_the_role_is_one_too_many(broker, tmp_path, gcs, missing):
    assert sorted(OPERATIONS) == sorted(gcs_role())
    site = restricted(broker, tmp_path, gcs, permit=[permission for permission in gcs_role() if permission != missing])
    try:
        site.server.write(site.bucket, "there", b"1", "text/plain")
        worker = site.spawn()
        if missing == "storage.objects.list":
            # The start looks at the bucket by asking for one name.
            assert worker.wait(30) == 78
            assert missing in worker.log() and site.bucket in worker.log()
            return
        worker.wait_ready()
        error = failure(OPERATIONS[missing](site))
        assert type(error) is PermissionError, error
        assert site.server.read(site.bucket, "there") == b"1"
        if missing == "storage.objects.delete":
            assert type(failure(site.send("delete", "there"))) is PermissionError
    finally:
        site.close()


def test_a_bucket_is_made_only_by_who_may_make_buckets(broker, tmp_path, gcs):
    name = f"e2e-{uuid.uuid4().hex[:12]}"
    site = BucketSite(broker, tmp_path, gcs, bucket=name)
    try:
        worker = site.spawn(GCS_PROJECT_ID="e2e")
        assert worker.wait(30) == 78
        assert name in worker.log() and "gcloud storage buckets create" in worker.log(), worker.log()
    finally:
        site.close()
    site = BucketSite(broker, tmp_path, gcs, bucket=name, permit=[*gcs_role(), "storage.buckets.create"])
    try:
        site.start(GCS_PROJECT_ID="e2e")
        assert site.send("store", "k", 1).get(timeout=TIMEOUT)["backend"] == "gcs"
    finally:
        site.close()


def test_the_policy_of_s3_grants_nothing_else(s3):
    bucket = s3.bucket()
    client = boto3.client(
        "s3",
        endpoint_url=s3.url,
        region_name=S3Server.region,
        aws_access_key_id=S3Server.worker_access_key,
        aws_secret_access_key=S3Server.worker_secret_key,
        config=botocore.config.Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
    )
    client.put_object(Bucket=bucket, Key="k", Body=b"x")
    for forbidden in (
        lambda: client.create_bucket(Bucket=f"{bucket}-more"),
        lambda: client.delete_bucket(Bucket=bucket),
        lambda: client.put_bucket_policy(Bucket=bucket, Policy="{}"),
        lambda: client.put_object_acl(Bucket=bucket, Key="k", ACL="public-read"),
        lambda: client.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": []}),
    ):
        with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
            forbidden()
    s3.give_back(bucket)
