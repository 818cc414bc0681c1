"""The admin's change form, judged by when it was shown.

    @admin.register(Slide)
    class SlideAdmin(ConcordAdminMixin, admin.ModelAdmin): ...

The form carries a token in a hidden field. What is saved with it, inlines and their deletions too,
is one unit, and all or nothing of it is written. If something moved, the form comes back as it was
filled in, and says so at the fields.

Why one token would not do for the second try: under one that has seen what moved in one row, the
fields of the others that nobody touched would count as changed. So the first token stays, and the
rows that the form told of have later ones of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from django import forms
from django.contrib import messages
from django.db import connections, router
from django.http import HttpResponseRedirect

from ..._json import key_text
from ...errors import ModelChanged, StaleContext, TokenExpired, TokenForeign, TokenInvalid
from ...receipts import Notification
from .._models import Models
from .blocks import reading, statements, unit
from .forms import READ_AT, Tells
from .rows import id_of_instance, model_of, tables

Told = Mapping[tuple[str, str], Notification]


class TokenField(forms.CharField):
    """Never among what a person changed."""

    widget = forms.HiddenInput

    def has_changed(self, initial: Any, data: Any) -> bool:
        return False


class ToldForm(Tells):
    """A form, or one of an inline, that is shown again."""

    told: Told = MappingProxyType({})

    def full_clean(self) -> None:
        form: Any = self
        super().full_clean()  # type: ignore[misc]
        if form.is_bound and self.told and form.instance.pk is not None:
            for row in _rows(form.instance):
                if row in self.told:
                    self.tell(self.told[row])


class ChangeForm(ToldForm):
    """The form of the object itself: not valid as long as there is anything to tell of any row."""

    def full_clean(self) -> None:
        form: Any = self
        super().full_clean()
        if form.is_bound and self.told:
            own = set(_rows(form.instance))
            for row, told in self.told.items():
                if row not in own:
                    form.add_error(None, str(told))
            if not form.errors:
                form.add_error(None, "Something of this was changed meanwhile.")
            token = _token(form.data.get(READ_AT))
            token["rows"] += [[*row, told.observed_at] for row, told in self.told.items()]
            form.data = form.data.copy()
            form.data[READ_AT] = json.dumps(token)


class ConcordAdminMixin:
    """Before ModelAdmin. The delete view is judged likewise; the actions of the list are not."""

    def get_object(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        admin: Any = super()
        with reading(using=router.db_for_write(self.model)) as read:  # type: ignore[attr-defined]
            found = admin.get_object(request, *args, **kwargs)
        request.concord_read_at = read.token
        return found

    def get_fieldsets(self, request: Any, obj: Any = None) -> Any:
        admin: Any = super()
        fieldsets = admin.get_fieldsets(request, obj)
        may: Any = self
        if obj is None or not may.has_change_permission(request, obj):
            return fieldsets
        if any(READ_AT in options["fields"] for _, options in fieldsets):
            return fieldsets
        return [*fieldsets, (None, {"fields": [READ_AT]})]

    def get_form(self, request: Any, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        admin: Any = super()
        if obj is None:
            return admin.get_form(request, obj, change=change, **kwargs)
        token = json.dumps({"read_at": request.concord_read_at, "rows": []})
        declared = {READ_AT: TokenField(required=False, initial=token), "told": _told(request)}
        base: Any = kwargs.get("form", self.form)  # type: ignore[attr-defined]
        kwargs["form"] = type("ConcordChangeForm", (ChangeForm, base), declared)
        return admin.get_form(request, obj, change=change, **kwargs)

    def get_formsets_with_inlines(self, request: Any, obj: Any = None) -> Iterator[Any]:
        admin: Any = super()
        for formset, inline in admin.get_formsets_with_inlines(request, obj):
            formset.form = type("ConcordForm", (ToldForm, formset.form), {"told": _told(request)})
            yield formset, inline

    def changeform_view(
        self,
        request: Any,
        object_id: Any = None,
        form_url: str = "",
        extra_context: Any = None,
    ) -> Any:
        admin: Any = super()

        def view() -> Any:
            return admin.changeform_view(request, object_id, form_url, extra_context)

        if request.method != "POST" or object_id is None or "_saveasnew" in request.POST:
            return view()
        return self._judged(request, request.POST.get(READ_AT), view)

    def delete_view(self, request: Any, object_id: Any, extra_context: Any = None) -> Any:
        admin: Any = super()
        if READ_AT not in request.GET:  # the page asks before anything is read, and posts to itself
            with reading(using=router.db_for_write(self.model)) as read:  # type: ignore[attr-defined]
                query = request.GET.copy()
            query[READ_AT] = json.dumps({"read_at": read.token, "rows": []})
            return HttpResponseRedirect(f"{request.path}?{query.urlencode()}")
        if request.method != "POST":
            return admin.delete_view(request, object_id, extra_context)
        return self._judged(
            request,
            request.GET[READ_AT],
            lambda: admin.delete_view(request, object_id, extra_context),
        )

    def _judged(self, request: Any, sent: str | None, view: Any) -> Any:
        """The view's answer, in a unit; if it was refused, what the view answers knowing why."""
        using = router.db_for_write(self.model)  # type: ignore[attr-defined]
        token = _token(sent)
        rows = {(model, id): read_at for model, id, read_at in token["rows"]}
        try:
            with unit(read_at=token["read_at"], using=using, rows_read_at=rows):
                return view()
        except StaleContext as stale:
            request.concord_told = {(each.model, each.id): each for each in stale.notifications}
        except (ModelChanged, TokenExpired, TokenForeign, TokenInvalid) as old:
            messages.error(request, f"Nothing was saved: {old.message}. Here it is as it is now.")
            return HttpResponseRedirect(request.path)
        if "post" in request.POST:  # the page that asks before it deletes has no fields
            for each in request.concord_told.values():
                messages.error(request, f"Nothing was deleted: {each}.")
            return HttpResponseRedirect(request.path)
        return view()


def _told(request: Any) -> Told:
    told: Told = getattr(request, "concord_told", {})
    return told


def _token(sent: str | None) -> dict[str, Any]:
    """What the hidden field held; without one nothing was read that could be judged."""
    try:
        token = json.loads(sent or "")
        rows = [[str(model), str(id), str(at)] for model, id, at in token["rows"]]
        return {"read_at": str(token["read_at"]), "rows": rows}
    except (ValueError, TypeError, KeyError):
        return {"read_at": "", "rows": []}


def _rows(instance: Any) -> Iterator[tuple[str, str]]:
    """Which rows of tracked tables hold it."""
    connection = connections[instance._state.db or "default"]
    models = Models(statements(connection))
    for meta in tables(instance._meta):
        model = model_of(models, meta)
        if model is not None:
            yield model.name, key_text(id_of_instance(connection, model, meta, instance))
