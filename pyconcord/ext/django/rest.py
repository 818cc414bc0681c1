"""REST framework views with ETags: what a client has seen is what its If-Match says.

    class SlideView(ConcordViewMixin, RetrieveUpdateDestroyAPIView): ...

A GET answers with a token as its ETag. PUT, PATCH and DELETE with `If-Match` run in a unit under
that token; what moved is answered by 412 and the notification, whose `observedAt` is the ETag of
what it shows. To a PUT it is not: sent again under that tag, the fields of its author's old copy
would count as changed, and take back what others wrote there. Who puts the whole gets it first.
RFC 9110, 13.1.1: weak tags never match, and `*` says only that something is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rest_framework import status
from rest_framework.exceptions import ParseError
from rest_framework.response import Response

from ...errors import (
    ConcordError,
    PreconditionFailed,
    StaleContext,
    TokenExpired,
    TokenForeign,
    TokenInvalid,
)
from .blocks import reading, unit

READ_AGAIN = (PreconditionFailed, StaleContext, TokenExpired, TokenForeign, TokenInvalid)
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


class ConcordViewMixin:
    """Before the generic view or viewset: its retrieve, update and destroy."""

    if_match_required = False
    """Whether a write without If-Match is refused (428), or judged by nothing."""

    def retrieve(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        view: Any = super()
        with reading() as read:
            response = view.retrieve(request, *args, **kwargs)
        response["ETag"] = f'"{read.token}"'
        return response

    def update(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        view: Any = super()
        return self._guarded(request, lambda: view.update(request, *args, **kwargs))

    def destroy(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        view: Any = super()
        return self._guarded(request, lambda: view.destroy(request, *args, **kwargs))

    def _guarded(self, request: Any, write: Callable[[], Any]) -> Any:
        given = request.headers.get("If-Match")
        if given is None and self.if_match_required:
            return Response(
                {"detail": "If-Match says what you have seen: the ETag of a GET"},
                status=status.HTTP_428_PRECONDITION_REQUIRED,
            )
        try:
            with unit(read_at=_token(given)) as block:
                response = write()
        except READ_AGAIN as refusal:
            return _failed(refusal, whole=request.method == "PUT")
        if block.receipt.read_at is not None and response.status_code == status.HTTP_200_OK:
            response["ETag"] = f'"{block.receipt.read_at}"'
        return response


def _token(given: str | None) -> str | None:
    if given is None or given.strip() == "*":
        return None
    tag = _TAG.fullmatch(given.strip())
    if tag is None:
        raise ParseError("If-Match is the ETag of a GET, one of them, in its quotes")
    if tag[1]:
        raise TokenInvalid("a weak ETag never matches")
    return tag[2]


def _failed(refusal: ConcordError, *, whole: bool) -> Any:
    response = Response(
        {
            "code": refusal.code,
            "detail": str(refusal),
            "notifications": [told.raw for told in refusal.notifications],
        },
        status=status.HTTP_412_PRECONDITION_FAILED,
    )
    if len(refusal.notifications) == 1 and not whole:
        response["ETag"] = f'"{refusal.notifications[0].observed_at}"'
    return response
