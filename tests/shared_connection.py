"""A pooler in transaction mode, small enough to read: many clients take turns on one connection.

A client has the connection from the first message of a transaction until the server is ready for
the next one, outside a transaction, with nothing sent that is not answered. Why that is a pooler's
transaction mode, at its worst: whatever a client leaves on the connection, the next one finds,
for there is no other connection to go to. Names of prepared statements are made the client's own,
as PgBouncer (1.22) does, and DEALLOCATE ALL, which psycopg sends after a rollback, gives up the
client's own. A client that goes in the middle is rolled back. What breaks it: COPY FROM, LISTEN and
a DEALLOCATE of one name, of which it knows nothing.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROTOCOL = 196608  # 3.0
CANCEL, SSL, GSS = 80877102, 80877103, 80877104

Message = tuple[bytes, bytes]  # its type, and what follows the length


class Gone(Exception):
    """Somebody closed the connection."""


class Wire:
    """Messages of the protocol on a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            with suppress(ConnectionError):
                if piece := self.socket.recv(size - len(data)):
                    data += piece
                    continue
            raise Gone
        return data

    def message(self) -> Message:
        head = self.take(5)
        return head[:1], self.take(struct.unpack("!I", head[1:])[0] - 4)

    def first(self) -> tuple[int, bytes]:
        """A startup message has no type; it says a version, or a request instead."""
        size, code = struct.unpack("!II", self.take(8))
        return code, self.take(size - 8)

    def send(self, kind: bytes, content: bytes = b"") -> None:
        try:
            self.socket.sendall(kind + struct.pack("!I", len(content) + 4) + content)
        except ConnectionError:
            raise Gone from None


@dataclass
class Names:
    """The prepared statements of a client."""

    client: int
    given_up: int = 0

    @property
    def prefix(self) -> bytes:
        return b"client_%d_%d_" % (self.client, self.given_up)

    def put_on(self, kind: bytes, content: bytes) -> bytes:
        """The message, with the prefix before the name of a statement if it has one."""
        before = b""
        if kind == b"Q" and content.upper().startswith(b"DEALLOCATE ALL"):
            self.given_up += 1
            return b"select\0"
        if kind == b"B":  # the portal's name comes first
            end = content.index(b"\0") + 1
            before, content = content[:end], content[end:]
        elif kind in (b"C", b"D") and content[:1] == b"S":
            before, content = content[:1], content[1:]
        elif kind != b"P":
            return content
        named = not content.startswith(b"\0")
        return before + (self.prefix + content if named else content)


@dataclass
class Turn:
    """What is under way between the client whose turn it is and the server."""

    unanswered: int = 0  # Query and Sync, each of which ends with ReadyForQuery
    unsynced: bool = False
    status: bytes = b"I"

    @property
    def over(self) -> bool:
        return not self.unanswered and not self.unsynced and self.status == b"I"

    def said(self, kind: bytes) -> None:
        if kind in (b"Q", b"S"):
            self.unanswered += 1
        self.unsynced = kind not in (b"Q", b"S")

    def heard(self, message: Message) -> None:
        if message[0] == b"Z":
            self.unanswered -= 1
            self.status = message[1]


class Pooler:
    """Listens in a directory, as a server on port 5432 would."""

    def __init__(self, directory: Path, server: tuple[str, str], user: str, dbname: str) -> None:
        self._turn = threading.Lock()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{server[0]}/.s.PGSQL.{server[1]}")
        self._server = Wire(connection)
        self._greeting = self._log_in(user, dbname)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(f"{directory}/.s.PGSQL.5432")
        self._listening.listen(64)
        threading.Thread(target=self._run, daemon=True).start()

    def _log_in(self, user: str, dbname: str) -> list[Message]:
        said = b"\0".join([b"user", user.encode(), b"database", dbname.encode(), b"", b""])
        self._server.send(b"", struct.pack("!I", PROTOCOL) + said)
        greeting = []
        while (message := self._server.message())[0] != b"Z":
            assert message[0] != b"E", message
            greeting.append(message)
        return [*greeting, message]

    def _run(self) -> None:
        number = 0
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listening.accept()
                number += 1
                threading.Thread(target=self._serve, args=(Wire(client), Names(number))).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._turn:
            self._server.send(b"X")
            self._server.socket.close()

    def _serve(self, client: Wire, names: Names) -> None:
        with client.socket, suppress(Gone):
            while (code := client.first()[0]) in (SSL, GSS):
                client.socket.sendall(b"N")
            if code == CANCEL:
                return
            for kind, content in self._greeting:
                client.send(kind, content)
            while True:
                message = client.message()
                if message[0] == b"X":
                    return
                with self._turn:
                    self._transaction(client, message, names)

    def _transaction(self, client: Wire, message: Message, names: Names) -> None:
        turn = Turn()
        try:
            self._forward(message, names, turn)
            while not turn.over:
                ready, _, _ = select.select([client.socket, self._server.socket], [], [])
                if self._server.socket in ready:
                    self._answer(turn, client)
                elif (message := client.message())[0] == b"X":
                    raise Gone
                else:
                    self._forward(message, names, turn)
        except Gone:
            self._roll_back(turn)
            raise

    def _forward(self, message: Message, names: Names, turn: Turn) -> None:
        kind, content = message
        turn.said(kind)
        self._server.send(kind, names.put_on(kind, content))

    def _answer(self, turn: Turn, client: Wire | None) -> None:
        message = self._server.message()
        turn.heard(message)
        if client is not None:
            client.send(*message)

    def _roll_back(self, turn: Turn) -> None:
        if turn.unsynced:
            turn.said(b"S")
            self._server.send(b"S")
        while turn.unanswered:
            self._answer(turn, None)
        if turn.status != b"I":
            turn.said(b"Q")
            self._server.send(b"Q", b"rollback\0")
            while turn.unanswered:
                self._answer(turn, None)


@contextmanager
def shared_connection(directory: Path, **server: Any) -> Iterator[str]:
    """The directory of a pooler's socket."""
    pooler = Pooler(directory, (server["host"], server["port"]), server["user"], server["dbname"])
    try:
        yield str(directory)
    finally:
        pooler.close()
