"""Ordinary models, which know nothing of Concord; all but `Note` are tracked."""

from __future__ import annotations

import uuid
from typing import Any

import django
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now


class Deck(models.Model):
    name = models.CharField(max_length=100)


class Tag(models.Model):
    name = models.CharField(max_length=100, unique=True)


class Slide(models.Model):
    deck = models.ForeignKey(Deck, on_delete=models.CASCADE, null=True)
    title = models.CharField(max_length=100)
    body = models.TextField(default="")
    price = models.DecimalField(max_digits=12, decimal_places=4, default=0)
    weight = models.FloatField(default=0.1)
    meta = models.JSONField(null=True)
    due = models.DateTimeField(null=True)
    length = models.DurationField(null=True)
    position = models.PositiveIntegerField(default=0)
    updated = models.DateTimeField(auto_now=True)
    tags = models.ManyToManyField(Tag)


class Comment(models.Model):
    """Outlives its slide."""

    slide = models.ForeignKey(Slide, on_delete=models.SET_NULL, null=True)
    text = models.TextField()


class Note(models.Model):
    """Not tracked."""

    slide = models.ForeignKey(Slide, on_delete=models.CASCADE)
    text = models.TextField()


class Page(models.Model):
    """A child that Django deletes in one statement, without having loaded it."""

    slide = models.ForeignKey(Slide, on_delete=models.CASCADE)
    text = models.TextField(default="")


class Place(models.Model):
    name = models.CharField(max_length=100)


class Restaurant(Place):
    stars = models.IntegerField(default=0)


class Shouted(models.CharField):
    """A field whose values the server turns into something else."""

    def get_placeholder(self, value: Any, compiler: Any, connection: Any) -> str:
        return "upper(%s)"


class Document(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    content = models.BinaryField(default=b"")
    title = Shouted(max_length=10, null=True)
    words = ArrayField(models.CharField(max_length=10), default=list)
    host = models.GenericIPAddressField(null=True)
    day = models.DateField(null=True)
    at = models.TimeField(null=True)
    parent = models.ForeignKey("self", on_delete=models.SET_NULL, null=True)


class Country(models.Model):
    code = models.CharField(primary_key=True, max_length=2)
    name = models.CharField(max_length=100)


if django.VERSION >= (5, 0):

    class Invoice(models.Model):
        net = models.IntegerField()
        gross = models.GeneratedField(
            expression=models.F("net") * 2,
            output_field=models.IntegerField(),
            db_persist=True,
        )
        issued = models.DateTimeField(db_default=Now())
        state = models.CharField(max_length=10, db_default="draft")


if django.VERSION >= (5, 2):

    class Seat(models.Model):
        pk = models.CompositePrimaryKey("house", "place")
        house = models.UUIDField(default=uuid.uuid4)
        place = models.IntegerField()
        guest = models.CharField(max_length=100, null=True)
