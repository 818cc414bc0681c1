"""The asynchronous names, for those who would rather say where they come from."""

from ._driver import Async
from .client import Actor, AsyncConcord, Batch, Feed, Reading, aconnect

AsyncActor = Actor[Async]
AsyncBatch = Batch[Async]
AsyncFeed = Feed[Async]
AsyncReading = Reading[Async]

__all__ = ["AsyncActor", "AsyncBatch", "AsyncConcord", "AsyncFeed", "AsyncReading", "aconnect"]
