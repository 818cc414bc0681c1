-- Sessions are minted by services, presented by logins, and revoked by both (see 25_sessions).
create function concord.mint_session(login name, kind text, id text, on_behalf_of text default null, tenant text default null,
                                     operations text[] default null, lifetime interval default '1 hour', label text default null,
                                     groups text[] default null,
                                     out session uuid, out secret text, out expires_at timestamptz)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  wrong text;
begin
  if not concord_internal.is_service() then
    perform concord_internal.fail('forbidden', null, 'only a login that may state who acts may mint sessions');
  end if;
  tenant := coalesce(tenant, who.tenant);
  if tenant is null then
    perform concord_internal.fail('invalid_request', 'tenant', 'whose? Nobody is acting: name a tenant, or call concord.act_as() first');
  elsif tenant is distinct from who.tenant and not concord_internal.mints_for_all() then
    perform concord_internal.fail('forbidden', 'tenant', 'this login may mint sessions for the tenant it acts in: concord.trust_login(login, mints_for_all => true) lets it mint for others');
  elsif login is null or to_regrole(quote_ident(login)) is null then
    perform concord_internal.fail('invalid_request', 'login', format('there is no role %s', coalesce(quote_ident(login), 'null')));
  elsif kind is null or kind not in ('user', 'agent', 'system') then
    perform concord_internal.fail('invalid_request', 'kind', 'one of user, agent, system');
  elsif lifetime is null or lifetime <= '0' or lifetime > '1 year' then
    perform concord_internal.fail('invalid_request', 'lifetime', 'more than nothing, and at most a year');
  end if;
  select n into wrong from unnest(array['tenant', 'id', 'on_behalf_of', 'label'], array[tenant, id, on_behalf_of, label]) u(n, v)
   where length(v) > 255 or v ~ '[\x01-\x1f]' or n in ('tenant', 'id') and coalesce(v, '') = '' limit 1;
  if found then
    perform concord_internal.fail('invalid_request', wrong, 'at most 255 characters, none of them a control character; tenant and id at least one');
  end if;
  select coalesce(o, 'null') into wrong from unnest(operations) o where (o ~ '.\.(read|create|update|delete)$') is not true limit 1;
  if found then
    perform concord_internal.fail('invalid_request', 'operations', format('%L is no operation, as slides.update is one: a model, and read, create, update or delete', wrong));
  end if;
  if exists (select from unnest(groups) g where (g ~ '^[^:]+:.') is not true) then
    perform concord_internal.fail('invalid_request', 'groups', 'groups as deck:abc is one: a kind, and which of it');
  end if;
  insert into concord_internal.session_key default values on conflict do nothing;
  delete from concord_internal.sessions o where o.expires_at < clock_timestamp() - concord_internal.setting('retention')::interval;
  secret := 'kcs1_' || encode(sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'hex');
  insert into concord_internal.sessions as made (secret_hash, login, tenant, kind, id, on_behalf_of, operations, groups, label, expires_at)
  values (sha256(convert_to(secret, 'UTF8')), login, tenant, kind, id, nullif(on_behalf_of, ''), operations, groups, label, clock_timestamp() + lifetime)
  returning made.session, made.expires_at into session, expires_at;
end
$$;
comment on function concord.mint_session(name, text, text, text, text, text[], interval, text, text[]) is
  'A secret, shown once, by which login may act (concord.authenticate) as this principal until it expires or is revoked.
tenant: that of the one who mints; another one only by a superuser, the owner of the database, or a login trusted with
mints_for_all. operations: what may be done by it, such as {slides.update,slides.create,decks.read}; a write implies the
read; null: everything. groups: rows of which groups, such as {deck:abc}; null: all. Both hold for commit, read and the log,
and on a protected table for every statement; by commit, read and the log a session with groups reaches no table that is not
protected, or not tracked with groups. It grants nothing: the login has the privileges on tables that it has. Ended sessions
are forgotten after the setting retention. Only for logins that may state who acts. Errors: forbidden, invalid_request.';

create function concord.authenticate(secret text, is_local boolean default true)
returns concord.principal
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  s concord_internal.sessions;
begin
  select * into s from concord_internal.sessions o
   where o.secret_hash = sha256(convert_to(coalesce(secret, ''), 'UTF8')) and o.login = session_user
     and o.revoked_at is null and o.expires_at > clock_timestamp();
  if s.session is null then
    perform concord_internal.fail('unauthenticated', 'secret', 'no session of this login, or none any more');
  end if;
  perform set_config('concord.session', s.session || '.' || concord_internal.session_mac(s.session), is_local);
  return row(s.tenant, s.kind, s.id, s.on_behalf_of)::concord.principal;
end
$$;
comment on function concord.authenticate(text, boolean) is
  'Acts by a session from here on, and says as whom. is_local (the default) holds until the end of the transaction; false
holds for the connection, and is unsafe behind a transaction pooler. A secret of another login, one that expired or was revoked
and one that never was are answered alike. Errors: unauthenticated.';

create function concord.revoke_session(session uuid)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update concord_internal.sessions s set revoked_at = coalesce(s.revoked_at, clock_timestamp())
   where s.session = revoke_session.session
     and (s.session = (concord_internal.session_in_force()).session or concord_internal.is_service()
          and (concord_internal.mints_for_all() or s.tenant = (concord.principal()).tenant));
  if not found then
    perform concord_internal.fail('not_found', 'session', 'no such session, or none that this login may revoke');
  end if;
end
$$;
comment on function concord.revoke_session(uuid) is
  'Ends a session: from its next statement on it acts as nobody (in a transaction with a fixed snapshot, from its next
transaction on). For those who may mint for its tenant, and for the session itself. Errors: not_found.';

create function concord_internal.sessions_shown(out session uuid, out login name, out tenant text, out kind text, out id text,
  out on_behalf_of text, out operations text[], out groups text[], out label text, out minted_by name, out minted_at timestamptz,
  out expires_at timestamptz, out revoked_at timestamptz)
returns setof record
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select s.session, s.login, s.tenant, s.kind, s.id, s.on_behalf_of, s.operations, s.groups, s.label, s.minted_by, s.minted_at, s.expires_at, s.revoked_at
    from concord_internal.sessions s
   where s.session = (select (concord_internal.session_in_force()).session)
      or (select concord_internal.is_service())
         and ((select concord_internal.mints_for_all()) or s.tenant = (select (concord.principal()).tenant))
$$;

create view concord.sessions as
  select * from concord_internal.sessions_shown();
comment on view concord.sessions is
  'The sessions of the tenant that the caller, who may mint them, acts in (who may mint for all sees all); to a session itself,
itself. Never a secret. Ended ones stay until they are older than the setting retention.';

-- Is what acts narrowed at all? Asked of every statement on a protected table, so it is no more than a look at a setting.
create function concord_internal.may_be_narrowed()
returns boolean
language sql
stable
parallel safe
return coalesce(current_setting('concord.session', true), '') <> '';

-- The session by which the caller acts; without an id when it acts otherwise.
create function concord_internal.acting_session()
returns concord_internal.sessions
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not concord_internal.may_be_narrowed() or coalesce(current_setting('concord.acting', true), '') <> '' and concord_internal.is_service() then
    return null;
  end if;
  return concord_internal.session_in_force();
end
$$;

create function concord_internal.is_narrowed()
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  s constant concord_internal.sessions := concord_internal.acting_session();
begin
  return s.operations is not null or s.groups is not null;
end
$$;

-- To which groups it is narrowed; null: to none.
create function concord_internal.session_groups()
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (concord_internal.acting_session()).groups;
end
$$;

create function concord_internal.operation_allowed(operations text[], model text, operation text)
returns boolean
language sql
immutable
return model || '.' || operation = any (operations)
       or operation = 'read' and exists (select from unnest(operations) a where left(a, -length(substring(a, '\.[a-z]+$'))) = model);

-- What it may do with a model. A session with groups goes by what policies make of them: where there are none, or not for the
-- groups that the model has now, it may do nothing.
create function concord_internal.session_may(model text, operation text)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  s constant concord_internal.sessions := concord_internal.acting_session();
begin
  return (s.operations is null or concord_internal.operation_allowed(s.operations, model, operation))
     and (s.groups is null or concord_internal.policies_know_groups(model));
end
$$;

create function concord_internal.policies_know_groups(model text)
returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from concord_internal.models m join concord_internal.protections p on p.rel = m.rel join pg_class c on c.oid = m.rel
                  where m.name = model and m.tenant in ('', (concord.principal()).tenant)
                    and m.groups <> '{}' and p.groups = m.groups and c.relrowsecurity and c.relforcerowsecurity);
end
$$;

-- The same for a table, under whatever name it is tracked, as its policies ask: rows of which groups. Null: all rows; none at
-- all where the operation is not among those that the session was minted for.
create function concord_internal.session_scope(rel regclass, operation text)
returns text[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  s constant concord_internal.sessions := concord_internal.acting_session();
  model constant text := coalesce((select m.name from concord_internal.models m where m.rel = session_scope.rel), (select relname from pg_class where oid = rel));
begin
  if s.operations is null or concord_internal.operation_allowed(s.operations, model, operation) then
    return s.groups;
  end if;
  return '{}';
end
$$;

select concord_internal.open_to('concord.mint_session(name,text,text,text,text,text[],interval,text,text[])', 'public');
select concord_internal.open_to('concord.authenticate(text,boolean)', 'public');
select concord_internal.open_to('concord.revoke_session(uuid)', 'public');
select concord_internal.open_to('concord_internal.sessions_shown()', 'public');
select concord_internal.open_to('concord_internal.may_be_narrowed()', 'public');
select concord_internal.open_to('concord_internal.acting_session()', 'public');
select concord_internal.open_to('concord_internal.is_narrowed()', 'public');
select concord_internal.open_to('concord_internal.operation_allowed(text[],text,text)', 'public');
select concord_internal.open_to('concord_internal.session_groups()', 'public');
select concord_internal.open_to('concord_internal.policies_know_groups(text)', 'public');
select concord_internal.open_to('concord_internal.session_scope(regclass,text)', 'public');
select concord_internal.open_to('concord_internal.session_may(text,text)', 'public');
select concord_internal.open_view_to('concord.sessions', 'public');
