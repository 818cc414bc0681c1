"""Django's models, unchanged, on the commit functions.

    from pyconcord.ext import django as concord

    with concord.reading() as read:                    # a GET: token first, then any queries
        slide = Slide.objects.get(pk=pk)
    ...                                                # minutes pass; read.token waits in the form
    with concord.unit(read_at=token, on_stale="notify") as unit:
        slide = Slide.objects.get(pk=pk)
        slide.title = title
        slide.save()                                   # an operation, guarded by the token
    unit.receipt.held

INSTALLED_APPS names `pyconcord.ext.django`, MIDDLEWARE `pyconcord.ext.django.middleware.
ConcordMiddleware`. Outside the two blocks nothing is intercepted.
"""

from .blocks import reading, unit
from .identity import acting
from .loaded import LOADED

__all__ = ["LOADED", "acting", "reading", "unit"]
