"""Makes the tables, has them tracked, and puts a deck into them."""

from models import Base, Deck, Slide, engine
from sqlalchemy import text
from sqlalchemy.orm import Session

SLIDES = [
    ("Where we stand", "Revenue grew by 12 % over the year. Costs grew by 15 %."),
    ("What we heard", "Customers ask for an export. Three of them left without it."),
    ("What comes next", "We build the export first. Then we hire for support."),
]

Base.metadata.create_all(engine)
with Session(engine) as session:
    session.execute(
        text("select concord.track('decks'), concord.track('slides', detail => 'before')")
    )
    slides = [Slide(position=n, title=t, body=b) for n, (t, b) in enumerate(SLIDES, start=1)]
    session.add(Deck(name="Board meeting", slides=slides))
    session.commit()
