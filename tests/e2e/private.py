"""A RabbitMQ node of a test's own, with settings and plugins of its own."""

import os
import socket

from harness import Broker


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class PrivateBroker(Broker):
    """A node whose `rabbitmq.conf` has these settings besides; its data lies in the folder."""

    def __init__(self, folder, settings, plugins=""):
        file = folder / "further.conf"
        file.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        given = {"DEV_BROKER_DIR": str(folder / "broker"), "DEV_BROKER_CONF": str(file), "DEV_BROKER_PLUGINS": plugins}
        shared = ("FILESTORAGE_TEST_BROKER_URL", "FILESTORAGE_TEST_RABBITMQCTL")
        before = {name: os.environ.get(name) for name in (*given, *shared)}
        for name in shared:
            os.environ.pop(name, None)
        os.environ.update(given)
        try:
            super().__init__()
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
