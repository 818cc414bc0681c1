"""Django's models and instances as rows of tracked tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg.adapt import Transformer

from .._models import Model, Models
from .._values import as_json


def model_of(models: Models, meta: Any) -> Model | None:
    """The tracked table of a model; `schema"."table` is how Django's applications name a schema."""
    schema, table = ([None] + meta.db_table.strip('"').split('"."'))[-2:]
    return models.of(table, schema)


def key_fields(meta: Any) -> Sequence[Any]:
    """The fields of the primary key; before Django 5.2 it was always one."""
    fields: Sequence[Any] = getattr(meta, "pk_fields", None) or [meta.pk]
    return fields


def json_of(connection: Any, field: Any, value: Any) -> Any:
    """A value that was prepared for the database, in JSON."""
    return as_json(value, Transformer(connection.connection), field.column)


def id_of(connection: Any, model: Model, meta: Any, values: Iterable[Any]) -> Any:
    """A row's id, of the values of its primary key, prepared for the database."""
    keys = zip(key_fields(meta), values, strict=False)  # a row may bring more than its key
    return model.id({field.column: json_of(connection, field, value) for field, value in keys})


def id_of_instance(connection: Any, model: Model, meta: Any, instance: Any) -> Any:
    """A saved object's id in one of its tables; None if it has none any more."""
    values = [
        field.get_db_prep_save(getattr(instance, field.attname), connection)
        for field in key_fields(meta)
    ]
    return None if None in values else id_of(connection, model, meta, values)


def tables(meta: Any) -> Iterable[Any]:
    """The Meta of each table that holds a part of a model's rows: it, and what it inherits from."""
    concrete = meta.concrete_model._meta
    return (each._meta for each in [concrete.model, *concrete.get_parent_list()])
