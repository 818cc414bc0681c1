-- Where the wall stands as concord.protect built it, and somebody could still walk around it: through a role, a view, a
-- function, a constraint. Catalogs alone are read.

-- The logins that use the pack: members of concord_app by grants, not for being superusers; and those that are trusted.
create function concord_internal.application_logins()
returns table (login regrole, bypasses boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive members(role) as (
    select to_regrole('concord_app')::oid
    union
    select m.member from members join pg_auth_members m on m.roleid = members.role)
  select r.oid::regrole, r.rolsuper or r.rolbypassrls
    from pg_roles r
   where r.rolcanlogin
     and (r.oid in (select role from members) or r.rolname in (select t.login from concord_internal.trusted_logins t
                                                               union select c.login from concord_internal.claim_logins c))
$$;

create function concord_internal.role_or_public(role oid)
returns text
language sql
stable
return case when role = 0 then 'public' else role::regrole::text end;

-- Around one protected table.
create function concord_internal.protection_findings(p concord_internal.protections)
returns setof concord.finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  rels constant oid[] := array(select r::oid from concord_internal.relations_of(p.rel) r);
  owner constant oid := (select relowner from pg_class where oid = p.rel);
  found record;
  todo text;
begin
  return query select * from concord_internal.protection_drift(p);
  if owner is null then
    return;
  end if;
  for found in select a.login, a.login = owner::regrole as itself, a.bypasses from concord_internal.application_logins() a
                where not a.bypasses and pg_has_role(a.login, owner, 'member') order by 1 loop
    return next row('error', case when found.itself then 'owner_is_application' else 'owner_assumable' end, p.rel::text,
      case when found.itself then format('%s, as which an application connects, owns the table: it can take the wall down', found.login)
           else format('%s, as which an application connects, can become %s, the table''s owner', found.login, owner::regrole) end,
      case when found.itself then format('alter table %s owner to a role that no application connects as;', p.rel)
           else format('revoke %s from %s;', owner::regrole, found.login) end)::concord.finding;
  end loop;
  for found in select o.polname, o.polrelid::regclass as rel from pg_policy o
                where o.polrelid = any (rels) and o.polpermissive and o.polname <> 'concord_open' order by 1, 2 loop
    return next row('warning', 'policy_without_effect', p.rel::text,
      format('policy %I on %s is permissive: beside concord''s it opens nothing and narrows nothing', found.polname, found.rel),
      format('drop policy %I on %s; or make it restrictive', found.polname, found.rel))::concord.finding;
  end loop;
  for found in
    with recursive readers(rel) as (  -- views of the table, and views of those
      select unnest(rels)
      union
      select w.ev_class from readers d join pg_depend e on e.refobjid = d.rel and e.refclassid = 'pg_class'::regclass and e.classid = 'pg_rewrite'::regclass
        join pg_rewrite w on w.oid = e.objid)
    select c.oid::regclass as rel, c.relkind, r.rolsuper or r.rolbypassrls as unbound, c.relowner::regrole as whom,
           coalesce(c.reloptions && '{security_invoker=true,security_invoker=on,security_invoker=1,security_invoker=yes}', false) as invoker,
           coalesce(c.reloptions && '{security_barrier=true,security_barrier=on,security_barrier=1,security_barrier=yes}', false) as barrier
      from readers d join pg_class c on c.oid = d.rel and c.relkind in ('v', 'm') join pg_roles r on r.oid = c.relowner
     order by 1
  loop
    if found.relkind = 'm' then
      if exists (select from pg_class c, aclexplode(c.relacl) a where c.oid = found.rel and a.grantee <> c.relowner and a.privilege_type = 'SELECT') then
        return next row('error', 'copy_open', p.rel::text, format('%s holds rows of every tenant that %s could see, and others may select from it', found.rel, found.whom),
          format('revoke all on %s from the roles that have it; a materialized view has no policies', found.rel))::concord.finding;
      end if;
    elsif not (found.invoker and found.barrier) then
      return next row(case when found.unbound and not found.invoker then 'error' else 'warning' end, 'view_open', p.rel::text,
        case when found.invoker then format('%s lacks security_barrier: a function in a query may see rows that the view leaves out', found.rel)
             when found.unbound then format('%s reads the table as %s, whom no policy binds', found.rel, found.whom)
             else format('%s reads the table as its owner %s, not as who asks', found.rel, found.whom) end,
        format('alter view %s set (security_invoker = true, security_barrier = true);', found.rel))::concord.finding;
    end if;
  end loop;
  for found in
    select k.conname, k.conrelid::regclass as rel, k.confrelid::regclass as target
      from pg_constraint k
     where k.contype = 'f' and k.conparentid = 0 and (k.conrelid = any (rels) or k.confrelid = any (rels))
       and not exists (select from generate_subscripts(k.conkey, 1) i
                         join pg_attribute a on a.attrelid = k.conrelid and a.attnum = k.conkey[i]
                         join pg_attribute b on b.attrelid = k.confrelid and b.attnum = k.confkey[i]
                        where a.attname = coalesce((select o.tenant_column from concord_internal.protections o where o.rel = k.conrelid), a.attname)
                          and b.attname = coalesce((select o.tenant_column from concord_internal.protections o where o.rel = k.confrelid), b.attname)
                          and (k.conrelid <> p.rel or a.attname = p.tenant_column) and (k.confrelid <> p.rel or b.attname = p.tenant_column))
     order by 1, 2
  loop
    return next row('warning', 'foreign_key_without_tenant', p.rel::text,
      format('foreign key %I of %s to %s does not hold the tenant: rows may refer to another tenant''s, whether one is there can be tried out, and a cascade goes through the wall',
             found.conname, found.rel, found.target),
      format('add the tenant to it: foreign key (tenant, …) references %s (tenant, …)', found.target))::concord.finding;
  end loop;
  for found in
    select i.indexrelid::regclass as index, i.indisprimary from pg_index i
     where i.indrelid = p.rel and (i.indisunique or i.indisexclusion)
       and not exists (select from pg_attribute a where a.attrelid = p.rel and a.attname = p.tenant_column and a.attnum = any (i.indkey))
     order by 1
  loop
    return next row('warning', 'unique_without_tenant', p.rel::text,
      format('%s is unique over all tenants: an insert that is refused tells that another tenant has the value', found.index),
      case when found.indisprimary then 'make the key (tenant, id), or ids that nobody can guess: uuid'
           else format('add %I to it', p.tenant_column) end)::concord.finding;
  end loop;
  for todo in select * from concord_internal.protection_todo(p) loop
    return next row('warning', case when todo like 'create index%' then 'index_missing' else 'check_not_valid' end, p.rel::text,
      case when todo like 'create index%' then 'no index begins with the columns that the policies compare: each page reads the table'
           else 'rows from before may be without a tenant, and so be nobody''s' end, todo)::concord.finding;
  end loop;
  for found in
    select c.oid::regclass as rel, a.grantee from pg_class c, aclexplode(c.relacl) a
     where c.oid = any (rels) and a.privilege_type = 'TRUNCATE' and a.grantee <> c.relowner order by 1, 2
  loop
    return next row('warning', 'truncate_granted', p.rel::text, format('%s may TRUNCATE %s: policies do not ask, a trigger alone refuses it',
        concord_internal.role_or_public(found.grantee), found.rel),
      format('revoke truncate on %s from %s;', found.rel, concord_internal.role_or_public(found.grantee)))::concord.finding;
  end loop;
  for found in select s.srrelid::regclass as rel from pg_subscription_rel s where s.srrelid = any (rels) order by 1 loop
    return next row('error', 'subscribed', p.rel::text, format('%s is subscribed: replication writes rows that nobody stamped', found.rel),
      'drop the table from the publication')::concord.finding;
  end loop;
  if exists (select from concord_internal.models m where m.rel = p.rel and m.tenant_column is distinct from p.tenant_column) then
    return next row('warning', 'log_without_tenant', p.rel::text,
      'the log does not hold the tenant of the rows: of it everybody sees only what it wrote itself',
      format('track it again with tenant_column => %L', p.tenant_column))::concord.finding;
  end if;
end
$$;

-- Around the roles, and what is not about one table.
create function concord_internal.access_findings()
returns setof concord.finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  found record;
begin
  for found in select a.login, r.rolsuper from concord_internal.application_logins() a join pg_roles r on r.oid = a.login where a.bypasses order by 1 loop
    return next row('error', 'login_unbound', null, format('%s, as which an application connects, is %s: no policy binds it', found.login,
        case when found.rolsuper then 'a superuser' else 'BYPASSRLS' end),
      format('alter role %s nosuperuser nobypassrls;', found.login))::concord.finding;
  end loop;
  for found in
    select s.login, count(distinct s.tenant) as tenants from concord_internal.sessions s
     where s.revoked_at is null and s.expires_at > clock_timestamp() group by s.login having count(distinct s.tenant) > 1 order by 1
  loop
    return next row('warning', 'login_shared', null,
      format('login %I has sessions of %s tenants: those who share a login can watch each other''s activity and settings', found.login, found.tenants),
      'a login for each tenant that distrusts the others, and sessions minted for it')::concord.finding;
  end loop;
  for found in
    select coalesce(nullif(s.setrole, 0)::regrole::text, 'every role') as who, split_part(c, '=', 1) as setting
      from pg_db_role_setting s, unnest(s.setconfig) c
     where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
       and split_part(c, '=', 1) in ('concord.acting', 'concord.session', 'request.jwt.claims') order by 1, 2
  loop
    return next row('error', 'identity_for_all', null, format('%s is set for %s: each connection begins as somebody', found.setting, found.who),
      format('alter role … (or alter database …) reset %s;', found.setting))::concord.finding;
  end loop;
  -- Called as a statement of its own, doctor is the first of its transaction: what was said for a transaction is gone.
  if now() = statement_timestamp() and (coalesce(current_setting('concord.acting', true), '') <> '' or coalesce(current_setting('concord.session', true), '') <> '') then
    return next row('warning', 'identity_per_connection', null,
      'who acts was said for this whole connection: behind a transaction pooler the next client acts as the last one',
      'say it in each transaction (is_local => true), and end it here: reset all;')::concord.finding;
  end if;
  for found in
    select p.oid::regprocedure as fn, r.rolsuper or r.rolbypassrls or exists (select from concord_internal.protections t join pg_class c on c.oid = t.rel where c.relowner = p.proowner) as strong,
           p.proowner::regrole as whom
      from pg_proc p join pg_roles r on r.oid = p.proowner
     where p.prosecdef and p.pronamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'concord'::regnamespace, 'concord_internal'::regnamespace)
       and not exists (select from unnest(p.proconfig) c where c like 'search\_path=%')
       and not exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
     order by 1
  loop
    return next row(case when found.strong then 'error' else 'warning' end, 'definer_without_path', null,
      format('%s runs with the rights of %s on its caller''s search_path: the caller chooses what its names mean', found.fn, found.whom),
      format('alter function %s set search_path = pg_catalog, pg_temp; and name the rest in full', found.fn))::concord.finding;
  end loop;
end
$$;

create function concord.doctor(out level text, out name text, out detail text, out remedy text)
returns setof record
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select f.level, f.code, concat_ws(': ', f.model, f.detail), f.remedy from concord.verify() f;
  if concord_internal.is_service() then
    return query select f.level, f.code, f.detail, f.remedy from concord_internal.access_findings() f;
  end if;
  return query
    select f.level, f.code, concat_ws(': ', f.model, f.detail), f.remedy
      from concord_internal.protections p cross join lateral concord_internal.protection_findings(p) f
     where concord_internal.is_service() or concord_internal.owns(p.rel)
     order by p.rel::text;
end
$$;
comment on function concord.doctor() is
  'Everything that concord.verify() finds, and where the wall that concord.protect built could be walked around: by roles, views,
functions, constraints, missing indexes, identities that outlive a transaction. No row means healthy. level: error (rows are, or can be
made, visible to others), warning (it can be guessed at, or it costs). remedy: what to run or to do. A superuser, the owner of the database and
trusted logins see everything, others what concerns tables of their own. Reads catalogs only. Call it as a statement of its own.';

select concord_internal.open_to('concord_internal.application_logins()');
select concord_internal.open_to('concord_internal.role_or_public(oid)');
select concord_internal.open_to('concord_internal.protection_findings(concord_internal.protections)');
select concord_internal.open_to('concord_internal.access_findings()');
select concord_internal.open_to('concord.doctor()', 'public');
