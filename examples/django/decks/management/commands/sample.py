"""Two people and a deck. Both have the password `concord`."""

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand

from decks.models import Deck

SLIDES = [
    ("Where we stand", "Revenue grew by 12 % over the year. Costs grew by 15 %."),
    ("What we heard", "Customers ask for an export. Three of them left without it."),
    ("What comes next", "We build the export first. Then we hire for support."),
]


class Command(BaseCommand):
    help = __doc__

    def handle(self, **options):
        for name in ("ana", "ben"):
            if not User.objects.filter(username=name).exists():
                User.objects.create_user(name, password="concord")
        deck = Deck.objects.create(name="Board meeting")
        for position, (title, body) in enumerate(SLIDES, start=1):
            deck.slides.create(position=position, title=title, body=body)
        self.stdout.write(f"deck {deck.pk}")
