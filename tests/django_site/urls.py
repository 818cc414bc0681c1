from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db import connection
from django.http import HttpResponse
from django.urls import path

from pyconcord.ext import django as concord
from pyconcord.ext.django.admin import ConcordAdminMixin
from tests.django_site.models import Comment, Deck, Slide


def whoami() -> str:
    with connection.cursor() as cursor:
        cursor.execute("select concat_ws(':', p.tenant, p.kind, p.id) from concord.principal() p")
        [who] = cursor.fetchone()
    return str(who)


def who(request: Any) -> Any:
    return HttpResponse(whoami())


def none(request: Any) -> Any:
    return HttpResponse("")


async def edit(request: Any, pk: int) -> Any:
    """Reads on GET, writes on POST, as an async view."""
    if request.method == "GET":
        async with concord.reading() as read:
            slide = await Slide.objects.aget(pk=pk)
        return HttpResponse(f"{read.token} {slide.title}")
    async with concord.unit(read_at=request.POST["read_at"], on_stale="notify") as unit:
        slide = await Slide.objects.aget(pk=pk)
        slide.title = request.POST["title"]
        await slide.asave()
    held = [(each.current or {})["title"] for each in unit.receipt.held]
    return HttpResponse(f"{unit.receipt.applied} {held}")


class Comments(admin.TabularInline):
    model = Comment
    extra = 1


@admin.register(Slide)
class SlideAdmin(ConcordAdminMixin, admin.ModelAdmin):
    fields = ("deck", "title", "body", "price")
    inlines = (Comments,)


@admin.register(Deck)
class DeckAdmin(ConcordAdminMixin, admin.ModelAdmin):
    """Says nothing of its fields."""


urlpatterns: list[Any] = [
    path("admin/", admin.site.urls),
    path("who", who),
    path("none", none),
    path("edit/<int:pk>", edit),
]
