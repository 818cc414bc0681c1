from django import forms
from django.contrib.auth.decorators import login_required
from django.shortcuts import get_object_or_404, redirect, render

from pyconcord.ext.django.forms import ConcordFormMixin

from .models import Deck, Slide


class SlideForm(ConcordFormMixin, forms.ModelForm):
    class Meta:
        model = Slide
        fields = ["title", "body"]
        widgets = {"title": forms.TextInput}


@login_required
def decks(request):
    return render(request, "decks/decks.html", {"decks": Deck.objects.order_by("name")})


@login_required
def deck(request, pk):
    found = get_object_or_404(Deck.objects.prefetch_related("slides"), pk=pk)
    return render(request, "decks/deck.html", {"deck": found})


@login_required
def edit(request, pk):
    slide = get_object_or_404(Slide, pk=pk)
    form = SlideForm(request.POST or None, instance=slide)
    if form.is_valid() and form.commit():
        return redirect(slide.deck)
    page = "decks/merge.html" if form.receipt else "decks/edit.html"
    return render(request, page, {"form": form, "slide": slide})
