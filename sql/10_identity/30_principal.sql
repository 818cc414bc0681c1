-- Who acts. A service login states it in one setting, concord.acting: tenant, kind, id and on_behalf_of with a unit
-- separator between them. Any SQL user can set that; it counts only while the login is trusted, asked anew each time.
-- Not JSON: a cast could fail, and a setting that somebody mistyped must mean nobody, not an error in every statement.
create type concord.principal as (tenant text, kind text, id text, on_behalf_of text);
comment on type concord.principal is
  'Who acts: tenant, kind (user, agent or system), id, and on whose behalf. All null: nobody.';

-- What a service stated: nobody, unless it is well formed.
create function concord_internal.stated(acting text)
returns concord.principal
language sql
immutable
parallel safe
return case
  when split_part(acting, E'\x1f', 1) <> '' and split_part(acting, E'\x1f', 3) <> ''
       and split_part(acting, E'\x1f', 2) in ('user', 'agent', 'system')
  then row(split_part(acting, E'\x1f', 1), split_part(acting, E'\x1f', 2), split_part(acting, E'\x1f', 3),
           nullif(split_part(acting, E'\x1f', 4), ''))::concord.principal end;

-- As whom a login acts that states nothing: by its session, else by its claims. (Restricted: the MAC is over the backend that
-- asks, which a parallel worker is not.)
create function concord_internal.proved()
returns concord.principal
language plpgsql
stable
parallel restricted
set search_path = pg_catalog, pg_temp
as $$
declare
  who concord.principal;
  s concord_internal.sessions;
begin
  if current_setting('concord.session', true) <> '' then
    s := concord_internal.session_in_force();
    if s.session is not null then
      return row(s.tenant, s.kind, s.id, s.on_behalf_of)::concord.principal;
    end if;
  end if;
  if current_setting('request.jwt.claims', true) <> '' then
    select c.tenant, c.kind, c.id, null into who from concord_internal.claimed() c;
  end if;
  return who;
end
$$;

-- An expression and nothing more, so that it is planned into whatever asks: each policy does, and a function of its own in each
-- transaction would cost what reading a page costs.
create function concord.principal()
returns concord.principal
language sql
stable
parallel safe
return case
  when coalesce(current_setting('concord.acting', true), '') <> '' and concord_internal.is_service()
    then concord_internal.stated(current_setting('concord.acting', true))
  when coalesce(current_setting('concord.session', true), '') <> '' or coalesce(current_setting('request.jwt.claims', true), '') <> ''
    then concord_internal.proved() end;
comment on function concord.principal() is
  'Who acts in this statement, as every stamp and check sees it; null for nobody. Open to everyone. What a login
states (concord.act_as) counts if this database trusts it; any login acts by a session of its own (concord.authenticate), and one that is named by the
claims of its JWT (concord.trust_claims).';

create function concord.act_as(tenant text, kind text, id text, on_behalf_of text default null,
                               is_local boolean default true)
returns void
language plpgsql
as $$
declare
  acting constant text := case
    when coalesce(tenant, '') = '' or coalesce(kind, '') = '' or coalesce(id, '') = '' then ''
    else concat_ws(E'\x1f', tenant, kind, id, coalesce(on_behalf_of, '')) end;
  wrong text;
begin
  if not concord_internal.is_service() then
    perform concord_internal.fail('forbidden', null,
      'only a superuser, the owner of the database, or a member of concord_service named by concord.trust_login() may state who acts');
  end if;
  if kind not in ('user', 'agent', 'system', '') then
    perform concord_internal.fail('invalid_request', 'kind', 'one of user, agent, system');
  end if;
  if length(acting) > 255 or acting ~ '[\x01-\x1e]' or length(acting) - length(replace(acting, E'\x1f', '')) not in (0, 3) then
    select n into wrong from unnest(array['tenant', 'id', 'on_behalf_of'], array[tenant, id, on_behalf_of]) u(n, v)
     where length(v) > 255 or v ~ '[\x01-\x1f]' limit 1;
    if wrong is not null then
      perform concord_internal.fail('invalid_request', wrong, 'at most 255 characters, none of them a control character');
    end if;
  end if;
  perform set_config('concord.acting', acting, is_local);
end
$$;
comment on function concord.act_as(text, text, text, text, boolean) is
  'States who acts: tenant, kind (user, agent, system), id, and optionally on whose behalf. is_local (the default) holds
until the end of the transaction; false holds for the connection, as in psql, and is unsafe behind a transaction pooler.
An empty or null tenant, kind or id means nobody. Only for logins that this database trusts.
Errors: forbidden, invalid_request.';

-- The author of a delta, for the triggers. A raw write by nobody is logged as system with the login's name.
create function concord_internal.author(out kind "char", out actor text, out on_behalf_of text)
language plpgsql
stable
as $$
declare
  who concord.principal := concord.principal();
begin
  if who.id is null then
    kind := 's';
    actor := session_user;
  else
    kind := left(who.kind, 1)::"char";
    actor := who.id;
    on_behalf_of := who.on_behalf_of;
  end if;
end
$$;

create function concord_internal.kind_name(kind "char")
returns text
language sql
immutable
return case kind when 'u' then 'user' when 'a' then 'agent' when 's' then 'system' end;

select concord_internal.open_to('concord_internal.stated(text)', 'public');
select concord_internal.open_to('concord_internal.proved()', 'public');
select concord_internal.open_to('concord.principal()', 'public');
select concord_internal.open_to('concord.act_as(text,text,text,text,boolean)', 'public');
select concord_internal.open_to('concord_internal.author()');
select concord_internal.open_to('concord_internal.kind_name("char")', 'public');
