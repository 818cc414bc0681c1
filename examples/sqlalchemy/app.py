"""Pages to edit a deck: `flask run`."""

from flask import Flask, abort, redirect, render_template, request, url_for
from flask import session as cookie
from models import Deck, Slide, engine
from sqlalchemy import select
from sqlalchemy.orm import Session

from pyconcord.ext import sqlalchemy as concord
from pyconcord.receipts import Principal

app = Flask(__name__)
app.secret_key = "of an example, which keeps no secret"
concord.install(engine, identity=lambda: Principal("acme", "user", cookie["user"]))


@app.before_request
def who():
    if "user" not in cookie and request.endpoint != "login":
        return redirect(url_for("login"))


@app.route("/login", methods=["GET", "POST"])
def login():
    if request.method == "GET":
        return render_template("login.html")
    cookie["user"] = request.form["name"]
    return redirect(url_for("decks"))


@app.route("/")
def decks():
    with Session(engine) as session:
        return render_template("decks.html", decks=session.scalars(select(Deck)).all())


@app.route("/decks/<int:id>")
def deck(id):
    with Session(engine) as session:
        return render_template("deck.html", deck=session.get(Deck, id) or abort(404))


@app.route("/slides/<int:id>", methods=["GET", "POST"])
def edit(id):
    with Session(engine) as session:
        if request.method == "GET":
            with concord.reading(session) as read:
                slide = session.get(Slide, id) or abort(404)
            return render_template("edit.html", slide=slide, read_at=read.token)
        with concord.unit(session, read_at=request.form["read_at"], on_stale="notify") as unit:
            slide = session.get(Slide, id) or abort(404)
            slide.title, slide.body = request.form["title"], request.form["body"]
        if unit.receipt.held:
            return render_template("merge.html", slide=slide, held=unit.receipt.held[0])
        return redirect(url_for("deck", id=slide.deck_id))
