-- Everything belongs to concord_owner wherever the installer may give it that; else to the installer, and only the
-- database's owner and superusers can then do everything.
do $$
declare
  thing record;
  left_over record;
begin
  -- What no file opened is closed: PUBLIC's default EXECUTE goes.
  for left_over in
    select p.oid::regprocedure as fn from pg_proc p
     where p.pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace) and p.proacl is null
  loop
    execute format('revoke all on function %s from public', left_over.fn);
  end loop;

  begin
    if to_regrole('concord_owner') is null then
      raise insufficient_privilege;
    end if;
    if not (select rolsuper from pg_roles where rolname = current_user) then
      -- Who made the role on 16 and later is a member without SET and INHERIT, and may grant itself both.
      if current_setting('server_version_num')::integer >= 160000 then
        execute format('grant concord_owner to %I with inherit true, set true', current_user);
      elsif not pg_has_role('concord_owner', 'member') then
        execute format('grant concord_owner to %I', current_user);
      end if;
      execute format('grant create on database %I to concord_owner', current_database());
    end if;
    for thing in
      select format('alter schema %I owner to concord_owner', n.nspname) as command, 1 as step
        from pg_namespace n where n.nspname in ('concord', 'concord_internal')
      union all
      select format('alter %s %s owner to concord_owner',
               case c.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end, c.oid::regclass), 2
        from pg_class c
       where c.relnamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace) and c.relkind in ('r', 'p', 'S', 'v')
         and not exists (select from pg_depend d where d.objid = c.oid and d.classid = 'pg_class'::regclass and d.deptype in ('a', 'i')
                            and d.refclassid = 'pg_class'::regclass and c.relkind = 'S')
      union all
      select format('alter type %s owner to concord_owner', t.oid::regtype), 3
        from pg_type t join pg_class c on c.oid = t.typrelid and c.relkind = 'c'
       where t.typnamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace)
      union all
      select format('alter function %s owner to concord_owner', p.oid::regprocedure), 4
        from pg_proc p where p.pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace)
      order by step
    loop
      execute thing.command;
    end loop;
  exception when insufficient_privilege or undefined_object then
    raise notice 'concord: its objects belong to %, not to concord_owner', current_user
      using hint = format('An administrator can create the role (create role concord_owner nologin;), grant it (grant concord_owner to %I;) and install again.', current_user);
  end;
end
$$;
