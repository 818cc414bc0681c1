"""Counts the round trips of a client."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg


class Relay:
    """Stands between a client and the server, and counts round trips.

    An answer is held back until the client has nothing more to say: what it sends without having
    seen the answer is the same trip.
    """

    def __init__(self, directory: Path, info: psycopg.ConnectionInfo) -> None:
        self.trips = 0
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{directory}/.s.PGSQL.5432")
        self._listening.listen()
        self._to = info.host, info.port
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            client, _ = self._listening.accept()
            with client, self._connect() as server:
                self._carry(client, server)

    def _connect(self) -> socket.socket:
        host, port = self._to
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{host}/.s.PGSQL.{port}")
            return server
        return socket.create_connection(self._to)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        answer = b""
        while True:
            said, _, _ = select.select([client, server], [], [], 0.2)
            if client in said:
                data = client.recv(65536)
                if not data:
                    return
                server.sendall(data)
            elif server in said:
                answer += server.recv(65536)
            elif answer:
                self.trips += 1
                client.sendall(answer)
                answer = b""

    def count(self, work: Callable[[], Any]) -> int:
        before = self.trips
        work()
        return self.trips - before
