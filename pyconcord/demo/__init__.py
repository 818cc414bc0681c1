"""A small application, worked on by people, agents, a job and psql, in six ways.

`audit.py` has the definitions behind the table, `ways.py` the six ways, `schema.sql` the rows.
"""

from pyconcord.demo.run import main

__all__ = ["main"]
