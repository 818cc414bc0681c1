"""Every definer that a role of the application may call: what others do with rows of their own changes no answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from tests.isolation.schedule import request, update
from tests.isolation.test_helpers_directly import READ, answers, helpers
from tests.security.wall import Wall


def asked(name: str, types: list[str], tokens: list[str], models: dict[str, int]) -> Iterator[str]:
    """Every combination of what can be guessed of docs and pages."""
    parsed = [f"concord_internal.parse_token('{token}')" for token in tokens]
    asks = [json.dumps(request(update("docs", 1, title="x"), read_at=token)) for token in tokens]
    docs, pages = models["docs"], models["pages"]
    guesses: dict[str, list[str]] = {
        "text": ["'1'", "'2'", "'docs'", "'pages'", "'all:acme'", f"'{tokens[0]}'"],
        "integer": [str(docs), str(pages), "100"],
        "integer[]": [f"'{{{docs},{docs},{pages}}}'", f"'{{{docs}}}'"],
        "text[]": ["'{1,2,1}'", "'{1}'", "'{title,body,docs,pages}'", "null"],
        "concord_internal.token": parsed,
        "jsonb": [f"'{ask}'" for ask in asks],
        "regclass": ["'docs'", "'pages'"],
        "bytea": ["'\\x'"],
        "concord_internal.protections": ["null"],
        "concord_internal.plain_commit": [
            f"concord_internal.plain_context('{ask}')" for ask in asks
        ],
    }
    for chosen in itertools.product(*(guesses[kind] for kind in types)):
        listed = ", ".join(f"{a}::{kind}" for a, kind in zip(chosen, types, strict=True))
        yield f"select h::text from concord_internal.{name}({listed}) h"


def test_rows_of_others_in_the_same_tenant(story: Wall) -> None:
    owner = story.owner()
    for table, more in (("docs", ""), ("pages", ", 'shared'")):
        owner.run(
            f"select concord.track('{table}', tenant_column => 'tenant', groups => array['all:{{tenant}}'])"
        )
        owner.run(f"select concord.protect('{table}', 'tenant', 'owner'{more})")
    ana, ben = story.bearer("ana"), story.bearer("ben")

    def work() -> None:
        ana.run("update docs set title = title || '.', body = 'x' where id = 1")
        ana.run("update pages set title = title || '.' where id = 1")
        ana.commit(request(update("docs", 1, title="by commit"), label="ana's", key=None))

    work()
    tokens = [ben.capture(), story.admin().one("select concord.capture()")]
    rows = story.admin().run("select name, id from concord_internal.models")
    models: dict[str, int] = dict(rows)
    found = helpers(story, "app2")
    calls = [call for name in READ.split() for call in asked(name, found[name][0], tokens, models)]
    assert len(calls) > 300
    first = answers(ben, calls)
    work()
    told = {
        call: (was, now)
        for call, was, now in zip(calls, first, answers(ben, calls), strict=True)
        if was != now and not only_that_it_moved(call, now)
    }
    assert told == {}, "\n".join(f"{k}: {v}" for k, v in told.items())
    assert any("row_conflict" in call for call in calls)


def only_that_it_moved(call: str, now: Any) -> bool:
    """A group moved: the premise fails, and no more is told."""
    if "group_conflict" not in call:
        return False
    answer = json.loads(now[0][0])
    return (answer["by"], answer["changes"], answer["base"]) == (None, [], {})
