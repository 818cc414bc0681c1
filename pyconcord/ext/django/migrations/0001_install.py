from django.db import migrations

from pyconcord.ext.django.operations import Install


class Migration(migrations.Migration):
    """The pack. A migration that tracks tables depends on `("concord", "0001_install")`."""

    initial = True
    dependencies: list[tuple[str, str]] = []  # noqa: RUF012
    operations = [Install()]  # noqa: RUF012
