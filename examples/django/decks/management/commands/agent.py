"""An agent that sums a deck up, and shortens its titles.

It reads, thinks without a transaction, and writes. The summary rests on every slide that it read:
if one changed meanwhile it reads again. A title that somebody else changed is theirs.
"""

from django.core.management.base import BaseCommand

from decks.models import Deck
from pyconcord import StaleContext
from pyconcord.ext import django as concord


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser):
        parser.add_argument("deck", type=int)

    def handle(self, deck, **options):
        with concord.acting(agent="editor"):
            while True:
                try:
                    held = self.edit(deck)
                    break
                except StaleContext as stale:
                    self.stdout.write(f"reads again: {stale.notifications[0]}")
        for each in held:
            self.stdout.write(f"left alone: {each.notification}")
        self.stdout.write("done")

    def edit(self, pk):
        with concord.reading() as read:
            slides = list(Deck.objects.get(pk=pk).slides.all())
        rests_on = read.loaded
        summary = " ".join(slide.body.split(". ")[0].rstrip(".") + "." for slide in slides)
        titles = {slide.pk: slide.title.removeprefix("What we ").capitalize() for slide in slides}
        input("It has read the deck. Enter lets it write: ")
        with concord.unit(read_at=read.token, reads=rests_on, label="summary") as unit:
            deck = Deck.objects.get(pk=pk)
            deck.summary = summary
            deck.save()
        with concord.unit(read_at=read.token, on_stale="notify", label="titles") as unit:
            for slide in slides:
                slide.title = titles[slide.pk]
                slide.save()
        return unit.receipt.held
