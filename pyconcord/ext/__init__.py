"""For applications with an ORM: their models, unchanged, on the commit functions.

`pyconcord.ext.sqlalchemy`, `pyconcord.ext.django` and `pyconcord.ext.alembic`, each an extra of its
own. What the ORMs share stands in the modules beside them, which import none of the three.
"""
