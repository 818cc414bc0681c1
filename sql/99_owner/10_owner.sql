-- The last of an installation, and of an upgrade.
do $$
declare
  left_over record;
  lacking text;
begin
  -- What no file opened is closed: PUBLIC's default EXECUTE goes.
  for left_over in
    select p.oid::regprocedure as fn from pg_proc p
     where p.pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace) and p.proacl is null
  loop
    execute format('revoke all on routine %s from public', left_over.fn);
  end loop;
  perform concord_internal.hand_over();

  select string_agg(replace(f.remedy, ' select concord_internal.settle();', ''), E'\n' order by f.n) into lacking
    from concord_internal.settle() with ordinality f(level, code, model, detail, remedy, n);
  if lacking is not null then
    raise notice 'concord: % may not do all of it: until an administrator has, only superusers and the owner of the database can use it', current_user
      using hint = E'An administrator can run, in this database:\n' || lacking || E'\nselect concord_internal.settle();';
  end if;
end
$$;
