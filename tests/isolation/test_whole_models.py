"""Changes of a whole model inside a commit: no lock of a row or a group names what they change."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import Story, deadlocked, group, refused, request, row, update

# A commit on x writes b, one on y changes all of a.
SKEWED = """
create table a (id int primary key, g text, more text);
create table b (id int primary key, v int);
create table x (id int primary key, v int);
create table y (id int primary key, v int);
insert into a values (1, 'x'); insert into b values (1, 0);
insert into x values (1, 0); insert into y values (1, 0);
select concord.track('a', groups => array['a:{g}'] TENANT);
select concord.track('b'); select concord.track('x'); select concord.track('y');
create function on_x() returns trigger language plpgsql security definer as
  $$ begin update b set v = v + 1; return null; end $$;
create function on_y() returns trigger language plpgsql security definer as
  $$ begin WHOLE; return null; end $$;
create trigger on_x after update on x for each row execute function on_x();
create trigger on_y after update on y for each row execute function on_y();
"""
WHOLE = {
    "truncate": "truncate a",
    # The group's column has another name: rows can't be told, and each write counts for all.
    "fallback": "update a set more = 'theirs'",
}


@pytest.mark.parametrize("tenant", ["", ", tenant => 'acme'"], ids=["shared", "of a tenant"])
@pytest.mark.parametrize("whole", WHOLE)
def test_skew_through_a_whole_model(story: Story, whole: str, tenant: str) -> None:
    """Serializable: each writes, by a trigger, what the other's decision rests on."""
    story.tables(SKEWED.replace("WHOLE", WHOLE[whole]).replace("TENANT", tenant))
    if whole == "fallback":
        story.psql("alter table a rename column g to h")
    ana, ben = story.actor("ana"), story.actor("ben")
    token = ana.capture()
    ben.run("begin")
    ben.commit(request(update("y", 1, v=1), read_at=token, reads=[row("b", 1)]))
    ana.run("begin")
    ana.start_commit(request(update("x", 1, v=1), read_at=token, reads=[group("a:x")]))
    ana.blocked()
    ben.run("commit")
    with refused("stale_context", "reads[0]"):
        ana.finish_commit()


def test_two_whole_models(story: Story) -> None:
    """Nobody waits for ever: of two that wait for each other one gives way."""
    story.tables(SKEWED.replace("WHOLE", "truncate a").replace("TENANT", ""))
    story.psql("insert into y values (2, 0)")
    ana, ben = story.actor("ana"), story.actor("ben")
    ana.run("begin")
    ana.commit(request(update("x", 1, v=1)))
    ben.run("begin")
    ben.start_commit(request(update("y", 1, v=1)))
    ben.blocked()  # for ana, who shares the tenant
    ana.start_commit(request(update("y", 2, v=1)))
    deadlocked(ana, ben)


@pytest.mark.parametrize(("said", "waits"), [("1", True), ("all", False), ("", False)])
def test_what_the_setting_says(story: Story, said: str, waits: bool) -> None:
    """Triggers lock where it says 1; all is a commit that has its tenants to itself."""
    story.tables(SKEWED.replace("WHOLE", "truncate a").replace("TENANT", ""))
    ana, raw = story.actor("ana"), story.raw()
    ana.run("begin")
    ana.commit(request(update("x", 1, v=1)))
    raw.run("begin")
    raw.run("select set_config('concord.committing', %s, true)", said)
    raw.start("truncate a")
    if waits:
        raw.blocked()
        ana.run("commit")
    raw.finish()
    advisory = "select count(*) from pg_locks where locktype = 'advisory' and pid = %s"
    raw.run("insert into a values (2, 'x'); insert into a values (3, 'x'), (4, 'x')")
    assert (story.value(advisory, raw.pid) > 0) is waits
    raw.run("rollback")
