"""One exception per code. The codes are the server's (sql/02_errors); a test compares the two."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import psycopg

from .receipts import Notification


class ConcordError(Exception):
    """A refusal by Concord, or contention that outlasted the retries.

    Failures while writing (constraints, row-level security) are no refusals: they pass through as
    the psycopg errors that they are.
    """

    code: str = "unknown"
    """What happened, stable across versions."""
    sqlstate: ClassVar[str | None] = None
    retryable: bool = False
    """Whether the same request may pass when it is sent again unchanged."""

    def __init__(
        self, message: str, *, param: str | None = None, detail: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message if param is None else f"{param}: {message}")
        self.message = message
        self.detail: Mapping[str, Any] = detail or {}
        """The error as the server gave it."""
        self.param: str | None = param or self.detail.get("param")
        """Where in the request: a path such as `operations[3].readAt`."""
        self.notifications: tuple[Notification, ...] = tuple(
            Notification.parse(each) for each in self.detail.get("notifications", ())
        )
        """What moved, of every stale operation and premise."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions travel between processes as their positional arguments, and we have keywords.
        return _revive, (type(self), self.message, self.param, dict(self.detail)), self.__dict__


def _revive(
    kind: type[ConcordError], message: str, param: str | None, detail: dict[str, Any]
) -> ConcordError:
    return kind(message, param=param, detail=detail)


class StaleContext(ConcordError):
    """Something that the write rests on moved after it was read; `notifications` says what."""

    code = "stale_context"
    sqlstate = "KC001"

    def __str__(self) -> str:
        told = "; ".join(map(str, self.notifications))
        return f"{told}: read again, or resolve" if told else super().__str__()


class PreconditionFailed(ConcordError):
    """A `where` did not hold."""

    code = "precondition_failed"
    sqlstate = "KC002"


class AlreadyExists(ConcordError):
    """There is a row under the id that was to be created."""

    code = "already_exists"
    sqlstate = "KC003"


class NotFound(ConcordError):
    """There is no such row, or none that the caller may see."""

    code = "not_found"
    sqlstate = "KC004"


class TokenExpired(ConcordError):
    """The token is older than the log. Read again."""

    code = "token_expired"
    sqlstate = "KC005"


class TokenForeign(ConcordError):
    """The token is of another server, or of this one before a crash. Read again."""

    code = "token_foreign"
    sqlstate = "KC006"


class TokenInvalid(ConcordError):
    """The token was altered or cut."""

    code = "token_invalid"
    sqlstate = "KC007"


class ModelUnknown(ConcordError):
    """Nothing is tracked under this name."""

    code = "model_unknown"
    sqlstate = "KC008"


class ModelChanged(ConcordError):
    """The token does not know the model as it is now. Read again, or `refresh` the model."""

    code = "model_changed"
    sqlstate = "KC009"


class IdempotencyInProgress(ConcordError):
    """A request with this idempotency key is still running."""

    code = "idempotency_in_progress"
    sqlstate = "KC010"
    retryable = True


class IdempotencyMismatch(ConcordError):
    """This idempotency key was used for another request."""

    code = "idempotency_mismatch"
    sqlstate = "KC011"


class InvalidRequest(ConcordError):
    """The request is malformed; `param` says where."""

    code = "invalid_request"
    sqlstate = "KC012"


class Unauthenticated(ConcordError):
    """Nobody is acting."""

    code = "unauthenticated"
    sqlstate = "KC013"


class Forbidden(ConcordError):
    """The principal, or the login, may not do this."""

    code = "forbidden"
    sqlstate = "KC014"


class LeaseLost(ConcordError):
    """A lease ran out, or went to another: what was done under it is not recorded."""

    code = "lease_lost"
    sqlstate = "KC015"


class Contended(ConcordError):
    """Postgres gave up a wait or a deadlock. Its own error is the `__cause__`."""

    code = "contended"
    retryable = True


class HeldWritesIgnored(UserWarning):
    """An actor left its block with held writes that nobody looked at."""


BY_CODE: Mapping[str, type[ConcordError]] = {
    kind.code: kind for kind in ConcordError.__subclasses__()
}
_BY_SQLSTATE = {kind.sqlstate: kind for kind in BY_CODE.values() if kind.sqlstate}
_CONTENTION = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.LockNotAvailable,
)


def from_wire(error: Mapping[str, Any]) -> ConcordError:
    """The exception for the `error` of a rejected receipt, of a newer server's code too."""
    kind = BY_CODE.get(error["code"], ConcordError)
    raised = kind(error["message"], param=error.get("param"), detail=error)
    raised.code, raised.retryable = error["code"], error["retryable"]
    return raised


# What is open to concord_app alone; the names stand in the message whatever its language.
_OF_CONCORD_APP = re.compile(r"\b(capture|read|(try_)?commit|history|changes|conflicts)\b")


def from_database(error: psycopg.Error, login: str | None = None) -> ConcordError | None:
    """The exception for what a function of Concord raised, or for not being let in to one.

    None for any other error. What is told to whoever lacks a grant names the `login`.
    """
    message = error.diag.message_primary or str(error)
    context = error.diag.context or ""
    if isinstance(error, _CONTENTION):
        return Contended(message)
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and not context:
        if _OF_CONCORD_APP.search(message) is None:
            return None
        remedy = f"{_named(login)} needs: grant concord_app to {_quoted(login)};"
        return Forbidden(f"{message}: {remedy}")
    kind = _BY_SQLSTATE.get(error.sqlstate or "")
    if kind is None:
        return None
    if kind is Forbidden and "concord.act_as(" in context:
        name = _quoted(login)
        trust = "select concord.trust_login({});".format(repr(login or "LOGIN"))
        message += f"; {_named(login)} needs: grant concord_service to {name}; {trust}"
    detail = _detail(error.diag.message_detail)
    # SQL puts code and param before the sentence, for those who see nothing but the MESSAGE.
    place = f" at {detail['param']}" if "param" in detail else ""
    message = message.removeprefix(f"{kind.code}{place}: ")
    return from_wire({"code": kind.code, "retryable": kind.retryable, **detail, "message": message})


def _named(login: str | None) -> str:
    return "this login" if login is None else f"the login {login}"


def _quoted(login: str | None) -> str:
    if login is None:
        return "LOGIN"
    return login if re.fullmatch(r"[a-z_][a-z0-9_]*", login) else f'"{login}"'


def _detail(text: str | None) -> dict[str, Any]:
    # Concord's DETAIL is a JSON object; a user's own trigger may raise KCnnn with a sentence there.
    try:
        detail = json.loads(text or "{}")
    except ValueError:
        return {}
    return detail if isinstance(detail, dict) else {}
