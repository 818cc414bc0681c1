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
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib.auth import get_user_model
from django.utils.translation import gettext as _

from ...receipts import Author, Notification
from .blocks import reading, unit
from .identity import option

READ_AT = "read_at"


@dataclass(frozen=True)
class Conflict:
    """A field that was changed since the form was shown, by somebody else and by its author."""

    label: str
    base: Any
    """As the form showed it; None where the log does not hold it."""
    theirs: Any
    yours: Any
    who: str


class Tells:
    """A model form that can say what moved under it."""

    fields: dict[str, Any]
    conflicts: Sequence[Conflict] = ()
    """Of the last commit, one for each field, for a page on which somebody decides."""

    def tell(self, told: Notification) -> None:
        """Add errors that say theirs and yours. What its author left alone is shown as it is now:
        under a token that has seen theirs, the old value would count as changed, and take back
        what somebody else wrote there.
        """
        form: Any = self
        who = name_of(told.written_by)
        if told.deleted:
            form.add_error(None, _("%(who)s deleted this meanwhile.") % {"who": who})
            return
        base, current = told.base or {}, told.current or {}
        for name in told.conflicting_fields or tuple(told.proposed):
            field = self._field_of(name)
            label = str(form[field].label) if field else name
            yours = told.proposed.get(name)
            conflict = Conflict(label, base.get(name), current.get(name), yours, who)
            self.conflicts = [*self.conflicts, conflict]
            text = _("%(who)s changed this to “%(theirs)s” meanwhile; yours is “%(yours)s”.")
            text %= {"who": who, "theirs": conflict.theirs, "yours": yours}
            form.add_error(field, text if field else f"{name}: {text}")
        form.data = form.data.copy()
        rows = type(form.instance)._base_manager.using(form.instance._state.db)
        now = rows.filter(pk=form.instance.pk).first()
        for field in form.instance._meta.concrete_fields:
            if now and field.name in self.fields and field.column not in told.proposed:
                self._show(field.name, field.value_from_object(now))

    def _show(self, name: str, value: Any) -> None:
        """Put a value into the submitted data, as its widget would have sent it."""
        form: Any = self
        html_name, widget = form.add_prefix(name), self.fields[name].widget
        value = self.fields[name].prepare_value(value)
        if isinstance(widget, forms.MultiWidget):
            for suffix, each, part in zip(
                widget.widgets_names, widget.widgets, widget.decompress(value), strict=True
            ):
                form.data[html_name + suffix] = each.format_value(part) or ""
        elif isinstance(widget, forms.CheckboxInput):
            form.data.pop(html_name, None)
            if value:
                form.data[html_name] = "on"
        elif isinstance(widget, forms.widgets.ChoiceWidget):
            form.data[html_name] = "" if value is None else value
        elif not isinstance(widget, forms.FileInput):
            shown = widget.format_value(value)
            form.data[html_name] = "" if shown is None else shown

    def _field_of(self, column: str) -> str | None:
        form: Any = self
        for field in form.instance._meta.concrete_fields:
            if field.column == column:
                return field.name if field.name in self.fields else None
        return None


class ConcordFormMixin(Tells):
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
        self.receipt, self.conflicts = block.receipt, ()
        told = [each.notification for each in self.receipt.held if each.notification is not None]
        for each in told:
            self.tell(each)
        if told:
            form.data = form.data.copy()
            form.data[form.add_prefix(READ_AT)] = told[0].observed_at
        return bool(self.receipt.landed)


def name_of(author: Author | None) -> str:
    """A user's own name, where principals are made of users as the middleware makes them."""
    if author is None:
        return str(_("somebody"))
    if author.kind == "user" and option("PRINCIPAL") is None:
        users = get_user_model()._default_manager
        with suppress(ValueError):  # an id that is no key of theirs
            user = users.filter(pk=author.id).first()
            if user is not None:
                return str(user)
    return f"{author.kind} {author.id}"
