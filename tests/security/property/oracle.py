"""What each principal may see and write, worked out in Python from the words of the guarantees alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

TEAMS = {"red": {"ana"}, "blue": {"ben"}, "both": {"ana", "ben"}}


@dataclass(frozen=True)
class Principal:
    """Who acts, and to what its session was narrowed. Without a tenant: nobody."""

    tenant: str | None = None
    kind: str = "user"
    id: str = ""
    on_behalf_of: str | None = None
    operations: frozenset[str] | None = None
    groups: frozenset[str] | None = None

    def owner(self, delegated: bool) -> str | None:
        """Its text in an owner column."""
        if self.tenant is None:
            return None
        if delegated and self.on_behalf_of is not None:
            return _user(self.on_behalf_of)
        return _user(self.id) if self.kind == "user" else f"{self.kind}:{self.id}"


def _user(id: str) -> str | None:
    return None if id.startswith(("agent:", "system:")) else id


@dataclass(frozen=True)
class Row:
    id: int
    tenant: str | None
    owner: str | None
    shared: bool | None = False
    team: str | None = None
    grp: str | None = None
    title: str = ""


@dataclass(frozen=True)
class Rule:
    """How a table is protected."""

    name: str
    owned: bool = True
    shared: bool = False
    predicate: bool = False
    delegated: bool = False
    writable: dict[str, str] | None = None
    grouped: bool = False

    def arguments(self) -> str:
        """As concord.protect takes them."""
        told = ["'tenant'"]
        if self.owned:
            told.append("'owner'")
        if self.shared:
            told.append("shared_column => 'shared'")
        if self.predicate:
            told.append(
                f"predicate => $$exists (select from teams m where m.team = {self.name}.team"
                " and m.member = (select (concord.principal()).id))$$"
            )
        if self.delegated:
            told.append("delegated => true")
        if self.writable is not None:
            items = ", ".join(f'"{k}": "{v}"' for k, v in self.writable.items())
            told.append(f"writable => '{{{items}}}'")
        return ", ".join(told)


@dataclass(frozen=True)
class Delta:
    """A change in the log."""

    id: int
    op: str
    tenant: str | None
    owner: str | None
    groups: frozenset[str]
    kind: str
    actor: str


@dataclass
class Table:
    """One table's rows and its log."""

    rule: Rule
    rows: dict[int, Row] = field(default_factory=dict)
    log: list[Delta] = field(default_factory=list)

    # --- what a session was narrowed to ---

    def may(self, who: Principal, operation: str) -> bool:
        """read, create, update, delete: is it among the session's operations?"""
        allowed = who.operations
        if allowed is None:
            return True
        names = {each.rpartition(".")[0] for each in allowed}
        return f"{self.rule.name}.{operation}" in allowed or (
            operation == "read" and self.rule.name in names
        )

    def _in_scope(self, who: Principal, row: Row, operation: str) -> bool:
        if not self.may(who, operation):
            return False
        return who.groups is None or bool(self.groups_of(row) & who.groups)

    def groups_of(self, row: Row) -> frozenset[str]:
        if not self.rule.grouped or row.grp is None:
            return frozenset()
        return frozenset({f"g:{row.grp}"})

    # --- rows ---

    def _inside(self, who: Principal, row: Row) -> bool:
        return who.tenant is not None and row.tenant == who.tenant

    def _own(self, who: Principal, row: Row) -> bool:
        me = who.owner(self.rule.delegated)
        return me is not None and row.owner == me

    def _in_team(self, who: Principal, row: Row) -> bool:
        return who.tenant is not None and who.id in TEAMS.get(row.team or "", ())

    def _readable(self, who: Principal, row: Row) -> bool:
        rule = self.rule
        if rule.predicate:
            return self._in_team(who, row)
        if rule.shared:
            return self._own(who, row) or row.shared is True
        if rule.owned and rule.writable is None:
            return self._own(who, row)
        return True

    def sees(self, who: Principal, row: Row) -> bool:
        return (
            self._inside(who, row) and self._readable(who, row) and self._in_scope(who, row, "read")
        )

    def _allowed(self, who: Principal, row: Row, operation: str, key: str) -> bool:
        rule = self.rule
        if rule.writable is None:
            if rule.predicate:
                return self._in_team(who, row)
            return not rule.owned or self._own(who, row)
        told = rule.writable.get(key, "any" if key == "insert" else "none")
        if told == "none":
            return False
        if key == "insert" or told == "own":
            return self._own(who, row)
        return self._readable(who, row)

    def updates(self, who: Principal, row: Row) -> bool:
        """May this row be the target of an update?"""
        return (
            self._inside(who, row)
            and self._allowed(who, row, "update", "update")
            and self._in_scope(who, row, "update")
        )

    def leaves(self, who: Principal, row: Row) -> bool:
        """May an update leave a row like this?"""
        rule = self.rule
        anybody = rule.writable is not None and rule.writable.get("update") == "any"
        return (
            self._inside(who, row)
            and (anybody or self._allowed(who, row, "update", "update"))
            and self._in_scope(who, row, "update")
        )

    def deletes(self, who: Principal, row: Row) -> bool:
        return (
            self._inside(who, row)
            and self._allowed(who, row, "delete", "delete")
            and self._in_scope(who, row, "delete")
        )

    def stamped(self, who: Principal, row: Row) -> Row | None:
        """The row as it would be inserted; None where its tenant or owner is another's."""
        if who.tenant is None or row.tenant not in (None, "", who.tenant):
            return None
        made = replace(row, tenant=who.tenant)
        if self.rule.owned:
            me = who.owner(self.rule.delegated)
            if me is None or row.owner not in (None, "", me):
                return None
            made = replace(made, owner=me)
        return made

    def inserts(self, who: Principal, row: Row) -> bool:
        """May a stamped row be inserted, its key aside?"""
        return self._allowed(who, row, "create", "insert") and self._in_scope(who, row, "create")

    # --- what happens ---

    def put(self, who: Principal, row: Row) -> None:
        before = self.rows.get(row.id)
        self.rows[row.id] = row
        groups = self.groups_of(row) | (self.groups_of(before) if before else frozenset())
        self._note(who, row, "create" if before is None else "update", groups)

    def drop(self, who: Principal, id: int) -> None:
        row = self.rows.pop(id)
        self._note(who, row, "delete", self.groups_of(row))

    def _note(self, who: Principal, row: Row, op: str, groups: frozenset[str]) -> None:
        owner = row.owner if self.rule.owned else None
        self.log.append(Delta(row.id, op, row.tenant, owner, groups, who.kind, who.id))

    def told(self, who: Principal, deltas: list[Delta]) -> list[Delta]:
        """Of these, those that the log shows."""
        return [delta for delta in deltas if self._is_told(who, delta)]

    def _is_told(self, who: Principal, delta: Delta) -> bool:
        if who.tenant is None or delta.tenant != who.tenant or not self.may(who, "read"):
            return False
        if who.groups is not None and not (self.rule.grouped and delta.groups & who.groups):
            return False
        mine = (delta.kind, delta.actor) == (who.kind, who.id)
        if self.rule.predicate:
            return mine
        if self.rule.owned and (self.rule.writable is None or self.rule.shared):
            me = who.owner(self.rule.delegated)
            return mine or (me is not None and delta.owner == me)
        return True


RULES = (
    Rule("walled", owned=False),
    Rule("walled_groups", owned=False, grouped=True),
    Rule("owned"),
    Rule("owned_groups", grouped=True),
    Rule("shared", shared=True),
    Rule("teams_rows", predicate=True),
    Rule("behalf", delegated=True),
    Rule("remarks", writable={"insert": "any", "update": "own", "delete": "none"}),
    Rule("wiki", writable={"update": "any", "delete": "own"}, shared=True),
    Rule("drop_box", writable={}),
    Rule("parts"),  # partitioned
)


def principals() -> list[Principal]:
    """Users and agents of the same names in three tenants, some acting for others, and nobody."""
    made = [Principal()]
    for tenant, kind, id in itertools.product(
        ("t0", "t1", "t2"), ("user", "agent"), ("ana", "ben")
    ):
        made.append(Principal(tenant, kind, id))
    made.append(Principal("t0", "agent", "ana", on_behalf_of="ben"))
    made.append(Principal("t1", "agent", "bot", on_behalf_of="ana"))
    made.append(Principal("t0", "user", "agent:ana"))
    made.append(Principal("t0", "agent", "bot", on_behalf_of="agent:ana"))
    return made
