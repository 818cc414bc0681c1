"""Keys, tenants, groups as text: one for a value, whoever writes it, and one that reads back."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import Story, group, refused, request, update

NOTES = """
create table notes (id int primary key, text text);
insert into notes values (1, 'first');
select concord.track('notes');
"""

# type, value, its group, and how a writer's session would say it otherwise
SAID_OTHERWISE = {
    "interval": ("interval", "1 hour 2 seconds", "01:00:02", "intervalstyle = 'iso_8601'"),
    "date by a domain": ("day", "2026-02-03", "2026-02-03", "datestyle = 'SQL, DMY'"),
    "float": ("float8", "0.1", "0.1", "extra_float_digits = -10"),
    "float by a domain": ("share", "0.1234567", "0.1234567", "extra_float_digits = -10"),
    "bytea by a domain": ("bytes", "\\x00ff", "\\x00ff", "bytea_output = 'escape'"),
    "range": ("daterange", "[2026-02-03,)", "[2026-02-03,)", "datestyle = 'SQL, DMY'"),
    "zoned": ("timetz", "10:00+00", "10:00:00+00", "timezone = 'Asia/Tokyo'"),
    "timestamptz by a domain": (
        "moment",
        "2026-02-03 10:00+00",
        "2026-02-03 10:00:00+00",
        "timezone = 'Asia/Tokyo'",
    ),
}
DOMAINS = """
create domain day as date;
create domain share as float8;
create domain bytes as bytea;
create domain moment as timestamptz;
"""


@pytest.mark.parametrize("detail", ["names", "before"])
@pytest.mark.parametrize("said", SAID_OTHERWISE)
def test_groups_in_any_session(story: Story, said: str, detail: str) -> None:
    """Never missed: a group has one name, whatever the writer's settings, whatever is logged."""
    type, value, name, setting = SAID_OTHERWISE[said]
    story.tables(DOMAINS + NOTES)
    story.tables(
        f"create table slots (id int primary key, g {type}, text text);"
        f"insert into slots values (1, '{value}', '-'), (2, '{value}', '-');"
        f"select concord.track('slots', groups => array['slot:{{g}}'], detail => '{detail}')"
    )
    ana, writer = story.actor("ana"), story.raw()
    writer.run(f"set {setting}")
    for write in (
        "update slots set text = 'theirs' where id = 1",
        "update slots set text = 'all of them'",
        "delete from slots where id = 2",
        f"insert into slots values (3, '{value}')",
        "alter table slots add column extra int",
        "update slots set text = 'by the fallback' where id = 1",
    ):
        token = ana.capture()
        writer.run(write)
        if write.startswith("alter"):
            continue
        ask = request(update("notes", 1, text="x"), read_at=token, reads=[group(f"slot:{name}")])
        with refused("stale_context", "reads[0]"):
            ana.commit(ask)


@pytest.mark.parametrize("detail", ["names", "before"])
def test_tenants_in_any_session(story: Story, detail: str) -> None:
    """Likewise whose a row is."""
    story.tables(
        "create domain day as date;"
        "create table diary (id int primary key, day day, text text);"
        "insert into diary values (1, '2026-02-03', '-');"
        f"select concord.track('diary', tenant_column => 'day', detail => '{detail}')"
    )
    ana, writer = story.actor("ana", tenant="2026-02-03"), story.raw()
    token = ana.capture()
    writer.run("set datestyle = 'SQL, DMY'; update diary set text = 'theirs'")
    with refused("stale_context"):
        ana.commit(request(update("diary", 1, text="mine"), read_at=token))


MOMENTS = {
    "timestamptz": [
        "infinity",
        "-infinity",
        "0044-03-15 12:00:00.5+00 BC",
        "0001-01-01 00:00:00+00",
        "4713-11-24 00:00:00+00 BC",
        "12000-01-01 00:00:00+00",
        "2026-02-03 10:00:00.123456+00",
    ],
    "timestamp": ["infinity", "-infinity", "0044-03-15 12:00 BC", "12000-01-01 00:00"],
    "date": ["infinity", "-infinity", "0044-03-15 BC", "12000-01-01"],
    "bytea": ["\\x", "\\x00ff", "\\x27"],
}


@pytest.mark.parametrize("type", MOMENTS)
def test_keys_of_every_value(story: Story, type: str) -> None:
    """The canonical text of a key is read back as the key: the row is found, and its changes."""
    story.tables(f"create table moments (at {type} primary key, text text)")
    story.tables("select concord.track('moments')")
    ana, writer = story.actor("ana"), story.raw()
    for settings in (
        "set timezone = 'Asia/Kathmandu'; set datestyle = 'SQL, DMY'",
        "set timezone = 'UTC'; set datestyle = 'German'; set standard_conforming_strings = off;"
        " set escape_string_warning = off",
    ):
        ana.run(settings)
        for n, value in enumerate(MOMENTS[type]):
            writer.run(
                f"insert into moments values (%s::{type}, '-') on conflict do nothing", value
            )
            token = ana.capture()
            ask = request(update("moments", value, text=f"mine {n} {settings}"), read_at=token)
            key = ana.commit(ask)["operations"][0]["id"]
            same = f"select (%s::{type} = %s::{type})"
            assert ana.one(same, key, value)
            assert ana.read("moments", key)["data"] is not None
            fresh = ana.capture()
            again = request(update("moments", key, text=f"again {settings}"), read_at=fresh)
            assert ana.commit(again)["operations"][0]["id"] == key
            writer.run(f"update moments set text = 'theirs' where at = %s::{type}", value)
            for id in (key, value):
                with refused("stale_context"):
                    ana.commit(request(update("moments", id, text="mine"), read_at=fresh))


@pytest.mark.parametrize("when", ["tracked", "written"])
def test_identifiers_that_are_quoted(story: Story, when: str) -> None:
    """No lost update: quote_all_identifiers changes how a type is spelled, not which it is."""
    owner = story.raw("owner")
    owner.run("create table days (day date primary key, text text)")
    owner.run("insert into days values ('2024-12-25', '-'); grant all on days to app")
    if when == "tracked":
        owner.run("set quote_all_identifiers = on")
    owner.run("select concord.track('days'); reset quote_all_identifiers")
    writer, ana = story.raw(), story.actor("ana")
    if when == "written":
        owner.run("alter table days add column more text")  # the fallback builds its text anew
        writer.run("set quote_all_identifiers = on")
    writer.run("set datestyle = 'German'")
    token = ana.capture()
    writer.run("update days set text = 'theirs'")
    with refused("stale_context"):
        ana.commit(request(update("days", "2024-12-25", text="mine"), read_at=token))


@pytest.mark.parametrize("key", ["id", "id, n"])
def test_a_character_key_without_a_length(story: Story, key: str) -> None:
    """Blanks at its end are kept, and do not count: equal keys can look different."""
    owner = story.raw("owner")
    owner.run(f"create table padded (id bpchar, n int, primary key ({key}))")
    with refused("invalid_request", "rel"):
        owner.run("select concord.track('padded')")


def test_a_session_that_quotes_every_name(story: Story) -> None:
    """What looks at its call stack, or at the spelling of a type, is not misled by quotes."""
    owner = story.raw("owner")
    owner.run("create table plain_names (id int primary key, text varchar(20), day date)")
    owner.run("insert into plain_names values (1); grant all on plain_names to app")
    owner.run("set quote_all_identifiers = on; select concord.track('plain_names')")
    owner.run("select concord.refresh('plain_names')")
    ana = story.actor("ana")
    ana.run("set quote_all_identifiers = on")
    for day in ("2024-01-01", "2024-01-02"):
        token = ana.capture()
        ana.commit(request(update("plain_names", 1, text=day), read_at=token))
        ana.commit(request(update("plain_names", 1, day=day), read_at=token))
        with refused("stale_context"):
            ana.commit(request(update("plain_names", 1, text="late"), read_at=token))
