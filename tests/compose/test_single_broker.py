"""One broker, one worker, one bucket, as docker-compose.yml starts them: the broker goes down under load and comes back."""

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from ledger import table
from load import Load
from stack import FIGURES

COMMANDS = 1000


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_lone_broker_loses_nothing(stacks, how):
    stack = stacks().up("rabbitmq", "gcs", "worker")
    stack.wait_healthy("worker")
    url = f"amqp://producer:producer@127.0.0.1:{stack.ports['RABBITMQ_PORT']}//"
    load = Load([url], queue_type="classic")
    try:
        load.start().wait_flowing()
        if how == "stopped":
            stack.stop("rabbitmq")
        else:
            stack.compose("kill", "rabbitmq")
        stack.start("rabbitmq")
        load.wait_flowing()
        load.stop(COMMANDS)
        load.drain()
        endpoint = {"api_endpoint": f"http://127.0.0.1:{stack.ports['GCS_PORT']}"}
        bucket = storage.Client("filestorage", AnonymousCredentials(), client_options=endpoint).bucket("filestorage")
        verdict = load.verdict(bucket)
    finally:
        load.close()
    row = {"fault": f"lone broker {how}", **verdict.numbers(until=load.stopped)}
    FIGURES.extend(table([row]))
    print(*table([row]), *load.troubles[:20], sep="\n")
    assert verdict.faults() == []
    assert row["confirmed"] > COMMANDS / 2
