"""A TCP link between a worker and its broker that can go deaf and be cut."""

import contextlib
import socket
import struct
import threading


class Wire:
    """Forwards connections to an address. Those that are deaf, by the order in which they were made since the last cut, drop what
    the worker says; cut, both ends are reset."""

    def __init__(self, host, port):
        self._to = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        self._links = 0
        self.deaf = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                worker, _ = self._listener.accept()
                broker = socket.create_connection(self._to)
                self._sockets += [worker, broker]
                for source, target, link in ((worker, broker, self._links), (broker, worker, None)):
                    threading.Thread(target=self._forward, args=(source, target, link), daemon=True).start()
                self._links += 1

    def _forward(self, source, target, link):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if link not in self.deaf:
                    target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Resets every connection; new ones are forwarded again."""
        self.deaf, self._links = set(), 0
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._sockets = []

    def close(self):
        self._listener.close()
        self.cut()
