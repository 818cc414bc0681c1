-- What an installation lacks whose installer might not do everything, or whose roles were lost. The remedies, run by a
-- superuser in their order, make it whole; they also stand in the notice at the end of the script (99_owner).
create function concord_internal.role_findings()
returns setof concord.finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  pack_owner constant text := (select nspowner::regrole from pg_namespace where nspname = 'concord');
  hand_over constant text := case when (select rolsuper from pg_roles where oid = pack_owner::regrole) then ''
                                  else format('grant concord_owner to %s; ', pack_owner) end;
  settle constant text := 'select concord_internal.settle();';
  member constant text := 'grant concord_app to concord_service;';
  missing bigint;
begin
  if to_regrole('concord_owner') is null then
    return next row('warning', 'role_missing', null, 'there is no role concord_owner: the pack belongs to ' || pack_owner,
      'create role concord_owner nologin; ' || hand_over || settle)::concord.finding;
  elsif exists (select from pg_roles where rolname = 'concord_owner' and (rolsuper or rolbypassrls or rolcanlogin)) then
    return next row('error', 'role_unsafe', null, 'concord_owner is a login, a superuser or BYPASSRLS',
      'alter role concord_owner nologin nosuperuser nobypassrls;')::concord.finding;
  elsif pack_owner <> 'concord_owner' then
    return next row('warning', 'owner_other', null, format('the pack belongs to %s, not to concord_owner', pack_owner),
      hand_over || settle)::concord.finding;
  end if;
  if to_regrole('concord_app') is null then
    return next row('warning', 'role_missing', null, 'there is no role concord_app: no application may use the pack',
      'create role concord_app nologin; ' || case when to_regrole('concord_service') is null then '' else member || ' ' end || settle)::concord.finding;
  end if;
  if to_regrole('concord_service') is null then
    return next row('warning', 'role_missing', null, 'there is no role concord_service: no application may say who acts',
      'create role concord_service nologin; ' || member)::concord.finding;
  elsif to_regrole('concord_app') is not null and not pg_has_role('concord_service', 'concord_app', 'member') then
    return next row('warning', 'role_missing', null, 'concord_service is not a member of concord_app', member)::concord.finding;
  end if;
  missing := (select count(*) from concord_internal.missing_grants());
  if missing > 0 then
    return next row('error', 'grants_missing', null,
      format('%s grants of the pack to concord_app are missing: its members may not use it', missing), settle)::concord.finding;
  end if;
end
$$;

select concord_internal.open_to('concord_internal.role_findings()');
