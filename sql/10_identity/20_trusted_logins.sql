-- A service login may state who acts. Roles belong to the cluster, so membership in concord_service is not enough: the
-- login must be named in this database too. By name, so that a dump keeps it.
create table concord_internal.trusted_logins (
  login name primary key,
  since timestamptz not null default now(),
  by name not null default session_user,
  mints_for_all boolean not null default false    -- sessions, for other tenants than that it acts in
);

create function concord_internal.is_service()
returns boolean
language plpgsql
stable
parallel safe
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  -- This runs with every stamp: is_admin() without its query comes first. (The owner of the database is the one member of
  -- pg_database_owner.)
  if pg_has_role(session_user, 'pg_database_owner', 'member') then
    return true;
  end if;
  perform from concord_internal.trusted_logins where login = session_user;
  return found and coalesce(pg_has_role(session_user, to_regrole('concord_service'), 'member'), false);
end
$$;
comment on function concord_internal.is_service() is
  'May this login state who acts? Superusers and the owner of the database always; others when they are members of
concord_service and named by concord.trust_login().';

create function concord_internal.mints_for_all()
returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return concord_internal.is_admin()
      or concord_internal.is_service() and exists (select from concord_internal.trusted_logins where login = session_user and mints_for_all);
end
$$;

create function concord.trust_login(login name, mints_for_all boolean default false)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not concord_internal.is_admin() then
    perform concord_internal.fail('forbidden', null, 'only a superuser or the owner of the database may trust a login');
  end if;
  if login is null or to_regrole(quote_ident(login)) is null then
    perform concord_internal.fail('invalid_request', 'login', format('there is no role %s', coalesce(quote_ident(login), 'null')));
  end if;
  insert into concord_internal.trusted_logins as t (login, mints_for_all) values (trust_login.login, trust_login.mints_for_all)
    on conflict on constraint trusted_logins_pkey do update set mints_for_all = excluded.mints_for_all
    where t.mints_for_all <> excluded.mints_for_all;
end
$$;
comment on function concord.trust_login(name, boolean) is
  'Lets a login, which must also be a member of concord_service, state who acts (concord.act_as) in this database, and mint
sessions (concord.mint_session) in the tenant that it acts in; with mints_for_all also for others. Called again, it says anew.
Only a superuser or the owner of the database may call it. Errors: forbidden, invalid_request (no such role).';

create function concord.distrust_login(login name)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not concord_internal.is_admin() then
    perform concord_internal.fail('forbidden', null, 'only a superuser or the owner of the database may distrust a login');
  end if;
  delete from concord_internal.trusted_logins t where t.login = distrust_login.login;
  delete from concord_internal.claim_logins c where c.login = distrust_login.login;
end
$$;
comment on function concord.distrust_login(name) is
  'Takes back trust_login and trust_claims; what the login states counts no more from its next statement. Unknown names are passed over.
Errors: forbidden.';

select concord_internal.open_to('concord_internal.is_service()', 'public');
select concord_internal.open_to('concord_internal.mints_for_all()', 'public');
select concord_internal.open_to('concord.trust_login(name,boolean)', 'public');
select concord_internal.open_to('concord.distrust_login(name)', 'public');
