-- Three roles, made if absent and permitted. Roles belong to the cluster, not to this database, so they stay behind
-- when the pack is removed, and an existing one is used as it is. Where one can't be made the pack still installs, and
-- 99_owner says at the end, in one place, what is left to an administrator.
do $$
declare
  role_name text;
begin
  foreach role_name in array array['concord_owner', 'concord_app', 'concord_service'] loop
    if to_regrole(role_name) is null then
      begin
        execute format('create role %I nologin', role_name);
      exception
        when duplicate_object or unique_violation then null;  -- somebody else installs at this moment
        when insufficient_privilege then null;
      end;
    end if;
  end loop;
  if exists (select from pg_roles where rolname = 'concord_owner' and (rolsuper or rolbypassrls or rolcanlogin)) then
    raise exception 'concord: role concord_owner exists and is a login, a superuser or BYPASSRLS'
      using errcode = 'object_not_in_prerequisite_state',
            hint = 'alter role concord_owner nologin nosuperuser nobypassrls; then install again.';
  end if;
  if to_regrole('concord_app') is not null and to_regrole('concord_service') is not null
     and not pg_has_role('concord_service', 'concord_app', 'member') then
    begin
      grant concord_app to concord_service;
    exception when insufficient_privilege then
      null;
    end;
  end if;
end
$$;
