"""Who acts in a request: its user, looked up when the first statement needs to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from ...receipts import Principal
from .identity import asking, option


class ConcordMiddleware:
    """After the AuthenticationMiddleware. Anonymous requests act as nobody."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        if iscoroutinefunction(self):
            return self.__acall__(request)
        with asking(lambda: who(request)):
            return self.get_response(request)

    async def __acall__(self, request: Any) -> Any:
        with asking(lambda: who(request)):
            return await self.get_response(request)


def who(request: Any) -> Principal | None:
    """The principal that CONCORD["PRINCIPAL"] makes of a request; else its user, if it has one."""
    custom = option("PRINCIPAL")
    if custom is not None:
        found: Principal | None = _called(custom)(request)
        return found
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return None
    house = option("TENANT_OF")
    tenant = option("TENANT") if house is None else _called(house)(request)
    if not tenant:
        raise ImproperlyConfigured("CONCORD['TENANT'] or ['TENANT_OF'] says whose data this is")
    return Principal(tenant, "user", str(user.pk))


def _called(path: Any) -> Any:
    return import_string(path) if isinstance(path, str) else path
