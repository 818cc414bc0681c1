"""From Python's arguments to a request in the JSON contract's own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypedDict
from uuid import UUID

from ._json import Reference, key_text
from .errors import InvalidRequest
from .reads import OnStale, Premise, declare
from .receipts import Row, Values

if TYPE_CHECKING:
    from typing_extensions import Unpack

Key = str | int | UUID | Decimal | Mapping[str, Any]
"""A row's id; for a composite key a mapping of its columns."""

Target = Row | tuple[str, Key | Reference] | str
"""A row to write to: one that was read, `(model, id)`, or the model with the id after it."""


class CommitOptions(TypedDict, total=False):
    """What any commit takes."""

    reads: Iterable[Premise]
    on_stale: OnStale | None
    returning: bool
    idempotency_key: str | None
    label: str | None


class BatchOptions(CommitOptions, total=False):
    """What a batch takes besides: the defaults of its operations and premises."""

    read_at: str | None
    only_changed: bool


class OperationOptions(TypedDict, total=False):
    """What an operation of a batch takes of its own."""

    where: Values | None
    read_at: str | None
    on_stale: OnStale | None
    transaction_id: str | None


def locate(target: Target, id: Key | Reference | None) -> tuple[str, str | Reference, str | None]:
    """The model, the id and, for a row that was read, the token of a target."""
    if isinstance(target, Row):
        return target.model, target.id, target.read_at
    if isinstance(target, tuple):
        model, id = target
    else:
        model = target
    return model, id if isinstance(id, Reference) else key_text(id), None


def update(
    target: Target,
    id: Key | Reference | None,
    data: Values | None,
    fields: Values,
    **options: object,
) -> dict[str, Any]:
    if data is not None and fields:
        raise InvalidRequest("either data= or keywords, not both", param="operations[0].data")
    return _on_row("update", target, id, {"data": fields if data is None else data}, options)


def delete(target: Target, id: Key | Reference | None, **options: object) -> dict[str, Any]:
    return _on_row("delete", target, id, {}, options)


def archive(
    target: Target, id: Key | Reference | None, away: bool, **options: object
) -> dict[str, Any]:
    return _on_row("archive" if away else "unarchive", target, id, {}, options)


def create(
    model: str, data: Values, id: Key | Reference | None, **options: object
) -> dict[str, Any]:
    where = {} if id is None else {"id": id if isinstance(id, Reference) else key_text(id)}
    return {"type": "create", "model": model, **where, "data": data, **_stated(options)}


def _on_row(
    type: str,
    target: Target,
    id: Key | Reference | None,
    data: dict[str, Any],
    options: dict[str, object],
) -> dict[str, Any]:
    model, key, seen = locate(target, id)
    if options.get("read_at") is None:
        options["read_at"] = seen
    return {"type": type, "model": model, "id": key, **data, **_stated(options)}


def request(
    operations: Iterable[Mapping[str, Any]], **options: Unpack[BatchOptions]
) -> dict[str, Any]:
    """A whole request."""
    rest: dict[str, Any] = {**options}
    declared = [declare(premise) for premise in rest.pop("reads", ())]
    premises = {"reads": declared} if declared else {}
    return {**_stated(rest), "operations": list(operations), **premises}


def _stated(options: Mapping[str, object]) -> dict[str, object]:
    """The options that do not say what is so anyway, under their names on the wire."""
    return {
        _camel(name): value
        for name, value in options.items()
        if value is not None and value is not False
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))
