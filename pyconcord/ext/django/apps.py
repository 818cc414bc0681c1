from django.apps import AppConfig
from django.db.models.signals import post_migrate

from .blocks import install as notice_saves
from .identity import install as say_who_acts
from .operations import refresh


class ConcordConfig(AppConfig):
    name = "pyconcord.ext.django"
    label = "concord"
    verbose_name = "Concord"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        say_who_acts()
        notice_saves()
        post_migrate.connect(refresh, sender=self)
