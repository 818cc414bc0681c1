"""Tables of one application behind the wall, one for each owner rule, and logins that may not state who acts."""

from __future__ import annotations

from tests.isolation.schedule import Session, Story

# The tables are the role owner's, which is no superuser. Rows of two tenants, with owners of the same names in each.
TABLES = """
create table notes (id int primary key, tenant text, title text);
create table docs (id int primary key, tenant text, owner text, title text, body text);
create table pages (id int primary key, tenant text, owner text, shared boolean default false, title text);
create table plans (id int primary key, tenant text, owner text, team text, title text);
create table teams (team text, member text);
create table remarks (id int primary key, tenant text, author text, editor text, text text);
insert into notes values (1, 'acme', 'n1'), (2, 'acme', 'n2'), (3, 'zeta', 'z1'), (4, null, 'lost');
insert into docs values (1, 'acme', 'ana', 'a1', ''), (2, 'acme', 'ben', 'b1', ''), (3, 'zeta', 'ana', 'z1', ''),
                        (4, 'acme', null, 'nobody''s', ''), (5, null, 'ana', 'nowhere', '');
insert into pages values (1, 'acme', 'ana', false, 'a1'), (2, 'acme', 'ben', false, 'b1'), (3, 'acme', 'ben', true, 'b2'),
                         (4, 'zeta', 'ben', true, 'z1');
insert into teams values ('red', 'ana'), ('blue', 'ben');
insert into plans values (1, 'acme', 'ana', 'red', 'p1'), (2, 'acme', 'ben', 'blue', 'p2'), (3, 'zeta', 'ana', 'red', 'z1');
insert into remarks values (1, 'acme', 'ana', null, 'r1'), (2, 'acme', 'ben', null, 'r2'), (3, 'zeta', 'ana', null, 'z1'), (4, null, null, null, 'lost');
select concord.track(t, tenant_column => 'tenant') from unnest('{notes,docs,pages,plans,remarks}'::regclass[]) t;
grant select, insert, update, delete, truncate on notes, docs, pages, plans, remarks to app, app2, plain;
grant select on teams to app, app2, plain;
"""
PROTECT = """
select concord.protect('notes', 'tenant');
select concord.protect('docs', 'tenant', 'owner');
select concord.protect('pages', 'tenant', 'owner', shared_column => 'shared');
select concord.protect('plans', 'tenant', 'owner', predicate => $$
  exists (select from teams t where t.team = plans.team and t.member = (select (concord.principal()).id)) $$);
select concord.protect('remarks', 'tenant', 'author', editor_column => 'editor',
                       writable => '{"insert": "any", "update": "own", "delete": "none"}');
"""


class Wall(Story):
    """A story whose actors are logins without trust, each acting by a session of its own."""

    def bearer(
        self,
        name: str,
        *,
        kind: str = "user",
        tenant: str = "acme",
        login: str = "app2",
        on_behalf_of: str | None = None,
    ) -> Session:
        """A connection of `login` that acts by a session."""
        secret = self.value(
            "select secret from concord.mint_session(%s, %s, %s, %s, tenant => %s)",
            login,
            kind,
            name,
            on_behalf_of,
            tenant,
        )
        made = self.session(f"{tenant}.{name}", login)
        made.run("select concord.authenticate(%s, is_local => false)", secret)
        return made

    def owner(self) -> Session:
        """The role that the tables belong to."""
        return self.session("owner", "owner")
