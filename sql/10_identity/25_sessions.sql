-- A login that this database does not trust acts by a session: a secret that a service minted for it, and that it presents
-- with authenticate(). Why nobody acts by another's:
--
-- - The secret is 244 random bits, shown once; only its SHA-256 is kept, so whoever reads the table can't act by it.
-- - authenticate() leaves in the setting concord.session the session's id and a MAC over it, this backend, and the server's
--   start. Who sets it by hand has no MAC; who copies it, into another connection or out of a log, has a wrong one.
-- - Each statement looks the session up again: its login (the session_user, whatever SET ROLE says), that it has not expired
--   and that nobody revoked it. What breaks it: a transaction with a fixed snapshot, which does not see a revocation before
--   it ends; and two who share a login, since one can watch and take over what the other's connection does.
create table concord_internal.sessions (
  session uuid primary key default gen_random_uuid(),
  secret_hash bytea not null unique,
  login name not null,
  tenant text not null,
  kind text not null,
  id text not null,
  on_behalf_of text,
  operations text[],               -- slides.update; null: all
  groups text[],                   -- deck:abc; null: all
  label text,
  minted_by name not null default session_user,
  minted_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null,
  revoked_at timestamptz
);

create table concord_internal.session_key (
  only_one boolean primary key default true check (only_one),
  key bytea not null default sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
);

insert into concord_internal.session_key default values;

-- Twice, as HMAC does, so that nothing can be appended to what is signed. Null where a dump was restored
-- without the key: no old setting counts there, and the next mint_session() makes a new one.
create function concord_internal.session_mac(session uuid)
returns text
language sql
stable
as $$
  select encode(sha256(k.key || sha256(k.key || convert_to(
           concat_ws(' ', session, session_user, pg_backend_pid(), extract(epoch from pg_postmaster_start_time())), 'UTF8'))), 'hex')
    from concord_internal.session_key k
$$;

-- The session in force; without an id when there is none.
create function concord_internal.session_in_force()
returns concord_internal.sessions
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  given constant text := current_setting('concord.session', true);
  s concord_internal.sessions;
begin
  if given ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[0-9a-f]{64}$' and split_part(given, '.', 2) = concord_internal.session_mac(left(given, 36)::uuid) then
    select * into s from concord_internal.sessions o
     where o.session = left(given, 36)::uuid and o.login = session_user and o.revoked_at is null and o.expires_at > clock_timestamp();
  end if;
  s.secret_hash := null;
  return s;
end
$$;

select concord_internal.open_to('concord_internal.session_mac(uuid)');
select concord_internal.open_to('concord_internal.session_in_force()', 'public');
