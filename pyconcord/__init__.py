"""Concurrency control for think-time, inside PostgreSQL: the thin Python layer."""

from . import errors, events, reads, schemas
from ._json import Reference
from .client import Actor, AsyncConcord, Batch, Concord, Feed, Reading, aconnect, connect
from .errors import (
    AlreadyExists,
    ConcordError,
    Contended,
    Forbidden,
    HeldWritesIgnored,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InvalidRequest,
    ModelChanged,
    ModelUnknown,
    NotFound,
    PreconditionFailed,
    StaleContext,
    TokenExpired,
    TokenForeign,
    TokenInvalid,
    Unauthenticated,
)
from .receipts import Author, Change, Held, Notification, Outcome, Principal, Receipt, Row

__version__ = "0.1.0"

__all__ = [
    "Actor",
    "AlreadyExists",
    "AsyncConcord",
    "Author",
    "Batch",
    "Change",
    "Concord",
    "ConcordError",
    "Contended",
    "Feed",
    "Forbidden",
    "Held",
    "HeldWritesIgnored",
    "IdempotencyInProgress",
    "IdempotencyMismatch",
    "InvalidRequest",
    "ModelChanged",
    "ModelUnknown",
    "NotFound",
    "Notification",
    "Outcome",
    "PreconditionFailed",
    "Principal",
    "Reading",
    "Receipt",
    "Reference",
    "Row",
    "StaleContext",
    "TokenExpired",
    "TokenForeign",
    "TokenInvalid",
    "Unauthenticated",
    "aconnect",
    "connect",
    "errors",
    "events",
    "reads",
    "schemas",
]
