"""What the pack is, read from the catalogs: to compare one way of arriving at it with another.

A snapshot maps the identity of each object in concord's schemas to all there is to say about it.
Object identifiers, creation order and data are left out: databases with equal snapshots behave
alike.
"""

from __future__ import annotations

from typing import Any

import psycopg

Snapshot = dict[str, str]


def snapshot(connection: psycopg.Connection[Any], *schemas: str) -> Snapshot:
    """Everything in the schemas, and what else is theirs; by default in concord's own."""
    found: Snapshot = {}
    names = ", ".join(f"'{name}'" for name in schemas or ("concord", "concord_internal"))
    for kind, query in _QUERIES.items():
        for identity, definition in connection.execute(f"{_SCHEMAS.format(names)}{query}".encode()):
            key = f"{kind} {identity}"
            assert key not in found, key
            found[key] = definition
    return found


def differences(one: Snapshot, other: Snapshot) -> list[str]:
    """What to tell whoever has to make them equal; empty when they are."""
    lines = []
    for key in sorted(one.keys() | other.keys()):
        if key not in other:
            lines.append(f"only the first has {key}")
        elif key not in one:
            lines.append(f"only the second has {key}")
        elif one[key] != other[key]:
            lines.append(f"{key} differs:\n  {one[key]}\n  {other[key]}")
    return lines


_SCHEMAS = """
with schemas as (
  select oid, nspname from pg_namespace where nspname in ({})
)
"""

# An access list as sorted text. Null means the default, and is written out.
_ACL = """
(select coalesce(string_agg(format('%s:%s%s',
     case grantee when 0 then 'public' else pg_get_userbyid(grantee) end,
     privilege_type, case when is_grantable then '*' else '' end), ' '
   order by pg_get_userbyid(grantee), privilege_type), '')
 from aclexplode(coalesce({acl}, acldefault({kind}, {owner}))))
"""


def _acl(kind: str, acl: str, owner: str) -> str:
    return _ACL.format(kind=f"'{kind}'", acl=acl, owner=owner)


_QUERIES = {
    "schema": f"""
select n.nspname,
  concat_ws(' | ', pg_get_userbyid(nspowner), {_acl("n", "nspacl", "nspowner")},
    obj_description(n.oid, 'pg_namespace'))
from pg_namespace n join schemas s using (oid)
""",
    "function": f"""
select p.oid::regprocedure::text,
  concat_ws(' | ', pg_get_functiondef(p.oid), pg_get_userbyid(proowner),
    {_acl("f", "proacl", "proowner")}, obj_description(p.oid, 'pg_proc'))
from pg_proc p join schemas s on s.oid = p.pronamespace
where prokind <> 'a'
""",
    "aggregate": f"""
select p.oid::regprocedure::text,
  concat_ws(' | ', to_jsonb(a) - 'aggfnoid', pg_get_userbyid(proowner),
    {_acl("f", "proacl", "proowner")}, obj_description(p.oid, 'pg_proc'))
from pg_proc p join schemas s on s.oid = p.pronamespace join pg_aggregate a on a.aggfnoid = p.oid
""",
    "relation": f"""
select c.oid::regclass::text,
  concat_ws(' | ', relkind, relpersistence, relrowsecurity, relforcerowsecurity, relreplident,
    array_to_string(reloptions, ','), pg_get_partkeydef(c.oid), pg_get_expr(relpartbound, c.oid),
    (select string_agg(inhparent::regclass::text, ',' order by inhseqno)
     from pg_inherits where inhrelid = c.oid),
    case when relkind in ('v', 'm') then pg_get_viewdef(c.oid) end,
    case when relkind in ('i', 'I') then pg_get_indexdef(c.oid) end,
    pg_get_userbyid(relowner),
    case when relkind = 'S' then {_acl("s", "relacl", "relowner")}
      when relkind in ('r', 'p', 'v', 'm', 'f') then {_acl("r", "relacl", "relowner")} end,
    obj_description(c.oid, 'pg_class'))
from pg_class c join schemas s on s.oid = c.relnamespace
where relkind <> 't'
""",
    "column": """
select format('%s.%I', c.oid::regclass, attname),
  concat_ws(' | ', row_number() over (partition by c.oid order by attnum),
    format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, attstorage,
    attcompression, attcollation::regcollation, pg_get_expr(d.adbin, d.adrelid), attacl::text,
    col_description(c.oid, attnum))
from pg_class c join schemas s on s.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid and attnum > 0 and not attisdropped
left join pg_attrdef d on d.adrelid = c.oid and d.adnum = attnum
where relkind not in ('i', 'I', 't')
""",
    "sequence": """
select seqrelid::regclass::text,
  concat_ws(' | ', format_type(seqtypid, null), seqstart, seqincrement, seqmin, seqmax, seqcache,
    seqcycle)
from pg_sequence join pg_class c on c.oid = seqrelid join schemas s on s.oid = c.relnamespace
""",
    "constraint": """
select format('%s on %s', conname, case when conrelid <> 0 then conrelid::regclass::text
    else contypid::regtype::text end),
  concat_ws(' | ', pg_get_constraintdef(c.oid), convalidated,
    obj_description(c.oid, 'pg_constraint'))
from pg_constraint c join schemas s on s.oid = c.connamespace
""",
    "trigger": """
select format('%s on %s', tgname, tgrelid::regclass),
  concat_ws(' | ', pg_get_triggerdef(t.oid), tgenabled, obj_description(t.oid, 'pg_trigger'))
from pg_trigger t join pg_class c on c.oid = tgrelid join schemas s on s.oid = c.relnamespace
where not tgisinternal
""",
    "policy": """
select format('%s on %s', polname, polrelid::regclass),
  concat_ws(' | ', polcmd, polpermissive,
    (select string_agg(coalesce(r.rolname, 'public'), ',' order by r.rolname)
     from unnest(polroles) as p (oid) left join pg_roles r on r.oid = p.oid),
    pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
from pg_policy join pg_class c on c.oid = polrelid join schemas s on s.oid = c.relnamespace
""",
    "type": f"""
select t.oid::regtype::text,
  concat_ws(' | ', typtype, typcategory, typnotnull, typdefault,
    format_type(typbasetype, typtypmod),
    (select string_agg(enumlabel, ',' order by enumsortorder) from pg_enum where enumtypid = t.oid),
    pg_get_userbyid(typowner), {_acl("T", "typacl", "typowner")}, obj_description(t.oid, 'pg_type'))
from pg_type t join schemas s on s.oid = t.typnamespace
where typelem = 0
""",
    "event trigger": """
select evtname, concat_ws(' | ', evtevent, evttags::text, evtenabled, evtfoid::regproc,
    pg_get_userbyid(evtowner))
from pg_event_trigger e join pg_proc p on p.oid = evtfoid join schemas s on s.oid = p.pronamespace
""",
    "default privilege": """
select format('%s %s', s.nspname, defaclobjtype), defaclacl::text
from pg_default_acl d join schemas s on s.oid = d.defaclnamespace
""",
    # The parts of other schemas: casts and operators over the pack's types, were there any.
    "cast": """
select format('%s as %s', castsource::regtype, casttarget::regtype),
  concat_ws(' | ', castfunc::regproc, castcontext, castmethod)
from pg_cast join pg_type t on t.oid in (castsource, casttarget)
join schemas s on s.oid = t.typnamespace
""",
}
