-- Who calls. Inside a definer function current_user is the owner, so the caller is the `role` setting where SET ROLE is
-- in force, else the login. Nobody passes these as arguments.
create function concord_internal.caller()
returns name
language sql
stable
parallel safe
return case when current_setting('role') = 'none' then session_user else current_setting('role')::name end;

create function concord_internal.is_admin()
returns boolean
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return pg_has_role(session_user, (select datdba from pg_database where datname = current_database()), 'member');
end
$$;
comment on function concord_internal.is_admin() is
  'Is the login a superuser, or (a member of) the owner of this database?';

create function concord_internal.owns(rel regclass)
returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((select pg_has_role(concord_internal.caller(), relowner, 'usage') from pg_class where oid = rel), false);
end
$$;

create function concord_internal.demand_owner(rel regclass)
returns void
language plpgsql
as $$
begin
  if not concord_internal.owns(rel) then
    perform concord_internal.fail('forbidden', 'rel', 'only the owner of the table may do this');
  end if;
end
$$;

select concord_internal.open_to('concord_internal.caller()', 'public');
select concord_internal.open_to('concord_internal.is_admin()', 'public');
select concord_internal.open_to('concord_internal.owns(regclass)', 'public');
select concord_internal.open_to('concord_internal.demand_owner(regclass)', 'public');
