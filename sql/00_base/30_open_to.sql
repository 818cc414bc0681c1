-- Who may call what. It is said in the file that creates the function, through open_to alone, and written down here:
-- settle() (90_health) makes the grants from it at the end of the installation, and again when a role that could not be
-- made then has come. By name, since pg_upgrade takes no regprocedure in a table.
create table concord_internal.openings (
  privilege text not null,
  thing text not null,
  grantee text not null,
  primary key (thing, grantee)
);

-- PUBLIC's default EXECUTE goes first.
create function concord_internal.open_to(fn regprocedure, variadic grantees text[] default '{}')
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('revoke all on routine %s from public', fn);
  if 'public' = any (grantees) then
    execute format('grant execute on routine %s to public', fn);
  end if;
  insert into concord_internal.openings select 'execute', fn::text, g from unnest(grantees) g where g <> 'public'
    on conflict do nothing;
end
$$;

-- The same for the views of the public face.
create function concord_internal.open_view_to(view regclass, variadic grantees text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if 'public' = any (grantees) then
    execute format('grant select on %s to public', view);
  end if;
  insert into concord_internal.openings select 'select', view::text, g from unnest(grantees) g where g <> 'public'
    on conflict do nothing;
end
$$;

-- The grants that are wanted, whose role is there, and that are not made, word for word: as commands.
create function concord_internal.missing_grants()
returns setof text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('grant %s on %s to %I', o.privilege, case o.privilege when 'execute' then 'function ' || o.thing else o.thing end, o.grantee)
    from concord_internal.openings o
   cross join lateral (
     select p.proacl as acl from pg_proc p where o.privilege = 'execute' and p.oid = to_regprocedure(o.thing)
     union all
     select c.relacl from pg_class c where o.privilege = 'select' and c.oid = to_regclass(o.thing)) t
   where to_regrole(o.grantee) is not null
     and not exists (select from aclexplode(t.acl) a where a.grantee = to_regrole(o.grantee) and a.privilege_type = upper(o.privilege))
$$;

-- A rule for the whole pack: a function that is called both by invokers (under the user's search_path) and by definers
-- (under theirs) pins search_path itself. Postgres plans a function's expressions anew whenever it finds another
-- search_path than last time, and that costs ten times what pinning costs.
