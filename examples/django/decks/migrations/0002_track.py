from django.db import migrations

from pyconcord.ext.django.operations import Track


class Migration(migrations.Migration):
    dependencies = [("decks", "0001_initial"), ("concord", "0001_install")]
    operations = [Track("Deck", detail="before"), Track("Slide", detail="before")]
