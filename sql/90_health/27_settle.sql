-- Everything belongs to concord_owner wherever whoever calls may give it that; else it stays as it is, and role_findings()
-- says so.
create function concord_internal.hand_over()
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  version constant integer := current_setting('server_version_num');
  command text;
begin
  if not exists (select from pg_roles where rolname = 'concord_owner' and not (rolsuper or rolbypassrls or rolcanlogin)) then
    raise insufficient_privilege;
  end if;
  -- Who made the role on 16 and later is a member without SET and INHERIT, and may grant itself both.
  if not pg_has_role('concord_owner', case when version < 160000 then 'member' else 'set' end) then
    execute format('grant concord_owner to %I%s', current_user, case when version < 160000 then '' else ' with inherit true, set true' end);
  end if;
  for command in
    select c from (
      select format('alter schema %I owner to concord_owner', n.nspname), 1
        from pg_namespace n where n.nspname in ('concord', 'concord_internal') and n.nspowner <> 'concord_owner'::regrole
      union all
      select format('alter %s %s owner to concord_owner',
               case c.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end, c.oid::regclass), 2
        from pg_class c
       where c.relnamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace) and c.relkind in ('r', 'p', 'S', 'v')
         and c.relowner <> 'concord_owner'::regrole
         and not exists (select from pg_depend d where d.objid = c.oid and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')
                            and d.refclassid = 'pg_class'::regclass and c.relkind = 'S')
      union all
      select format('alter type %s owner to concord_owner', t.oid::regtype), 3
        from pg_type t join pg_class c on c.oid = t.typrelid and c.relkind = 'c'
       where t.typnamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace) and t.typowner <> 'concord_owner'::regrole
      union all
      select format('alter routine %s owner to concord_owner', p.oid::regprocedure), 4
        from pg_proc p
       where p.pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace) and p.proowner <> 'concord_owner'::regrole
    ) commands (c, step)
    order by step
  loop
    execute command;
  end loop;
exception when insufficient_privilege then
  null;
end
$$;

-- The end of an installation and of an upgrade; and again, when an administrator has made the roles that whoever installed
-- could not: the grants that the pack's files asked for, and the hand-over. The same for every way in. It returns what is
-- lacking still. SECURITY DEFINER, so that a superuser who calls it runs nothing of a lesser owner's with more than that
-- owner's rights; hence that owner has to be a member of concord_owner, and stays one.
create function concord_internal.settle()
returns setof concord.finding
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  command text;
begin
  for command in select * from concord_internal.missing_grants() loop
    execute command;
  end loop;
  perform concord_internal.hand_over();
  return query select * from concord_internal.role_findings();
end
$$;
