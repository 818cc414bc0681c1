"""An agent that sums a deck up, and shortens its titles: `python agent.py 1`.

It reads, thinks without a transaction, and writes. The summary rests on every slide that it read:
if one changed meanwhile it reads again. A title that somebody else changed is theirs.
"""

import sys

from models import Deck, engine
from sqlalchemy.orm import Session

from pyconcord import StaleContext
from pyconcord.ext import sqlalchemy as concord
from pyconcord.receipts import Principal

concord.install(engine, identity=lambda: Principal("acme", "agent", "editor"))


def edit(session, id):
    with concord.reading(session) as read:
        deck = session.get_one(Deck, id)
        slides = list(deck.slides)
    rests_on = read.loaded
    summary = " ".join(slide.body.split(". ")[0].rstrip(".") + "." for slide in slides)
    titles = [slide.title.removeprefix("What we ").capitalize() for slide in slides]
    input("It has read the deck. Enter lets it write: ")
    with concord.unit(session, read_at=read.token, reads=rests_on, label="summary"):
        deck.summary = summary
    with concord.unit(session, read_at=read.token, on_stale="notify", label="titles") as unit:
        for slide, title in zip(slides, titles, strict=True):
            slide.title = title
    return unit.receipt.held


def main():
    with Session(engine, expire_on_commit=False) as session:
        while True:
            try:
                held = edit(session, int(sys.argv[1]))
                break
            except StaleContext as stale:
                print(f"reads again: {stale.notifications[0]}")
    for each in held:
        print(f"left alone: {each.notification}")
    print("done")


main()
