"""Model forms that notice what happened since they were shown.

class SlideForm(ConcordFormMixin, forms.ModelForm): ...

def edit(request, pk):
    slide = get_object_or_404(Slide, pk=pk)
    form = SlideForm(request.POST or None, instance=slide)
    if form.is_valid() and form.commit():
        return redirect(slide)
    return render(request, "edit.html", {"form": form})
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms
from django.utils.translation import gettext as _

from ...receipts import Notification
from .blocks import reading, unit

READ_AT = "read_at"


class ConcordFormMixin:
    """A hidden token says when the form was filled from its object; `commit` is judged by it.

    The token has to be older than what the form shows. So a form that is shown reads its object
    again, after the token; one whose object was read by the view itself, inside `reading()`, is
    given that token as `read_at`.
    """

    receipt: Any = None
    """Of the last `commit`."""

    def __init__(self, *args: Any, read_at: str | None = None, **kwargs: Any) -> None:
        instance: Any = kwargs.get("instance")
        shown = not (args and args[0] is not None) and kwargs.get("data") is None
        stored = instance is not None and not instance._state.adding
        if shown and stored and read_at is None:
            with reading(using=instance._state.db or "default") as read:
                instance.refresh_from_db()
            read_at = read.token
        super().__init__(*args, **kwargs)
        self.fields: dict[str, Any]
        self.fields[READ_AT] = forms.CharField(
            required=stored, initial=read_at, widget=forms.HiddenInput
        )

    def commit(self, **options: Any) -> bool:
        """Save in a unit. Where somebody else changed the same fields nothing of them is written.

        Then the form has errors that say theirs and yours, and a token that has seen theirs: who
        submits it again, with either, means it. `options` are those of `unit`.
        """
        form: Any = self
        token = form.cleaned_data.get(READ_AT) or None
        using = form.instance._state.db or "default"
        with unit(read_at=token, on_stale="notify", using=using, **options) as block:
            form.save()
        self.receipt = block.receipt
        for held in self.receipt.held:
            if held.notification is not None:
                self._tell(held.notification)
        return bool(self.receipt.landed)

    def _tell(self, told: Notification) -> None:
        form: Any = self
        who = f"{told.written_by.kind} {told.written_by.id}" if told.written_by else _("somebody")
        if told.deleted:
            form.add_error(None, _("%(who)s deleted this meanwhile.") % {"who": who})
            return
        current, proposed = told.current or {}, told.proposed
        names: Sequence[str] = told.conflicting_fields or tuple(proposed)
        for name in names:
            values = {"who": who, "theirs": current.get(name), "yours": proposed.get(name)}
            field = self._field_of(name)
            text = _("%(who)s changed this to “%(theirs)s” meanwhile; yours is “%(yours)s”.")
            form.add_error(field, text % values if field else f"{name}: {text % values}")
        form.data = form.data.copy()
        form.data[form.add_prefix(READ_AT)] = told.observed_at

    def _field_of(self, column: str) -> str | None:
        form: Any = self
        for field in form.instance._meta.concrete_fields:
            if field.column == column:
                return field.name if field.name in self.fields else None
        return None
