from django.db import models
from django.urls import reverse


class Deck(models.Model):
    name = models.TextField()
    summary = models.TextField(blank=True)

    def get_absolute_url(self):
        return reverse("deck", args=[self.pk])


class Slide(models.Model):
    deck = models.ForeignKey(Deck, on_delete=models.CASCADE, related_name="slides")
    position = models.IntegerField()
    title = models.TextField()
    body = models.TextField(blank=True)

    class Meta:
        ordering = ["position"]
