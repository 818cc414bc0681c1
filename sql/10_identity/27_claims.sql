-- PostgREST and Supabase check a token of their own and leave what it claims in the setting request.jwt.claims. For a login
-- that an administrator names, that says who acts. It is trusted as a service is: whoever may run any SQL as that login may
-- set the setting, and so be anybody.
create table concord_internal.claim_logins (
  login name primary key,
  id text not null,        -- where in the claims: sub, or app_metadata.user
  tenant text not null,
  kind text not null,
  since timestamptz not null default now(),
  by name not null default session_user
);

create function concord.trust_claims(login name, id text default 'sub', tenant text default 'tenant', kind text default 'user')
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  wrong text;
begin
  if not concord_internal.is_admin() then
    perform concord_internal.fail('forbidden', null, 'only a superuser or the owner of the database may trust a login');
  elsif login is null or to_regrole(quote_ident(login)) is null then
    perform concord_internal.fail('invalid_request', 'login', format('there is no role %s', coalesce(quote_ident(login), 'null')));
  elsif kind is null or kind not in ('user', 'agent', 'system') then
    perform concord_internal.fail('invalid_request', 'kind', 'one of user, agent, system');
  end if;
  select n into wrong from unnest(array['id', 'tenant'], array[id, tenant]) u(n, v)
   where coalesce(v, '') = '' or '' = any (string_to_array(v, '.')) limit 1;
  if found then
    perform concord_internal.fail('invalid_request', wrong, 'the path of a claim, such as sub or app_metadata.tenant');
  end if;
  insert into concord_internal.claim_logins as c (login, id, tenant, kind) values (trust_claims.login, trust_claims.id, trust_claims.tenant, trust_claims.kind)
    on conflict on constraint claim_logins_pkey do update set id = excluded.id, tenant = excluded.tenant, kind = excluded.kind;
end
$$;
comment on function concord.trust_claims(name, text, text, text) is
  'Lets the claims of a JWT that PostgREST or Supabase checked (the setting request.jwt.claims) say who acts, for the login that
they connect as (authenticator): id and tenant are paths into the claims. Claims without either, or that are no JSON, are
nobody. What concord.act_as or concord.authenticate say goes before. Called again, it says anew; concord.distrust_login
takes it back. Only a superuser or the owner of the database may call it. Errors: forbidden, invalid_request.';

-- The id, tenant and kind that the claims say; nulls where none count.
create function concord_internal.claimed(out tenant text, out kind text, out id text)
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c concord_internal.claim_logins;
  claims json;
begin
  select * into c from concord_internal.claim_logins o where o.login = session_user;
  if not found then
    return;
  end if;
  begin
    claims := current_setting('request.jwt.claims', true);
    tenant := claims #>> string_to_array(c.tenant, '.');
    id := claims #>> string_to_array(c.id, '.');
  exception when data_exception then
    null;
  end;
  if coalesce(tenant, '') = '' or coalesce(id, '') = '' or length(tenant) > 255 or length(id) > 255
     or tenant ~ '[\x01-\x1f]' or id ~ '[\x01-\x1f]' then
    tenant := null;
    id := null;
  else
    kind := c.kind;
  end if;
end
$$;

select concord_internal.open_to('concord.trust_claims(name,text,text,text)', 'public');
select concord_internal.open_to('concord_internal.claimed()', 'public');
