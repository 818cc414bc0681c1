"""From tables that know nothing of Concord to protected, tracked entities.

A bridge takes tables (of a live database, or of DDL), column packs and a target. It writes the
migration (packs, protect, track, and back) as plain SQL, for Alembic or for Django, and a module of
entities for SQLAlchemy or Django, which read through row-level security and write through the units
of `pyconcord.ext`. The module can be written anew when the tables change: what it has between the
marks of a region is the generator's, and the rest its owner's.
"""

from . import django, sqlalchemy
from .migration import Bridge, Target
from .modules import Conflict, rewritten
from .tables import BridgeError, Table, of_database, of_ddl

__all__ = [
    "Bridge",
    "BridgeError",
    "Conflict",
    "Table",
    "Target",
    "django",
    "of_database",
    "of_ddl",
    "rewritten",
    "sqlalchemy",
]
