"""What was loaded in a block, as premises.

Django sends post_init for every object that a query yields. It is received only while a block is
open that keeps a record, and only for objects made in that block's thread, where its connection is.
`values()`, aggregates and raw SQL make no objects: those are for `rests_on`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Final

from django.db.models.signals import post_init

from .._models import Models
from .rows import id_of_instance, model_of, tables


class Loaded:
    """The type of `LOADED`."""

    def __repr__(self) -> str:
        return "LOADED"


LOADED: Final = Loaded()
"""For `reads=`: what was loaded in the block before a write is that write's premise."""

_lock = threading.Lock()
_open: tuple[Record, ...] = ()


class Record:
    """The objects made in one thread while it is open."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._thread = threading.get_ident()
        self._made: list[tuple[Any, set[str]]] = []

    def __enter__(self) -> Record:
        global _open
        with _lock:
            _open += (self,)
            post_init.connect(_received, dispatch_uid="concord")
        return self

    def __exit__(self, *_: object) -> None:
        global _open
        with _lock:
            _open = tuple(each for each in _open if each is not self)
            if not _open:
                post_init.disconnect(dispatch_uid="concord")

    def premises(self, models: Models) -> Iterator[dict[str, Any]]:
        """What was loaded since this was asked last; whole rows, or the loaded fields of some."""
        made, self._made = self._made, []
        for instance, deferred in made:
            state = instance._state
            if not state.adding and state.db == self._connection.alias:
                yield from premises_of(self._connection, models, instance, deferred)


def premises_of(
    connection: Any, models: Models, instance: Any, deferred: set[str]
) -> Iterator[dict[str, Any]]:
    """The rows that an object was loaded from; of a partly loaded one, those fields of them."""
    for meta in tables(instance._meta):
        model = model_of(models, meta)
        id = None if model is None else id_of_instance(connection, model, meta, instance)
        if model is None or id is None:
            continue
        fields = [f for f in meta.local_concrete_fields if getattr(f, "column", None)]
        present = [f.column for f in fields if f.attname not in deferred]
        whole = len(present) == len(fields)
        yield {"model": model.name, "id": id} | ({} if whole else {"fields": present})


def _received(instance: Any, **_: Any) -> None:
    here = threading.get_ident()
    for record in _open:
        if record._thread == here:
            record._made.append((instance, instance.get_deferred_fields()))
