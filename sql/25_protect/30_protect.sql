-- protect and unprotect are invoker functions, as track is: policies and triggers are made with the table owner's own
-- rights. On a search_path of their own, but for the user's predicate, which is read under the caller's.
create function concord.protect(rel regclass, tenant_column name, owner_column name default null, shared_column name default null,
  predicate text default null, writable jsonb default null, editor_column name default null, delegated boolean default false,
  contract text default null)
returns jsonb
language plpgsql
as $$
begin
  return concord_internal.protect_table(
    row(null, rel, tenant_column, owner_column, shared_column, predicate, writable, editor_column, coalesce(delegated, false), contract,
        '{}', false, now())::concord_internal.protections,
    pg_catalog.current_setting('search_path'));
end
$$;
comment on function concord.protect(regclass, name, name, name, text, jsonb, name, boolean, text) is
  'Puts row-level security on a table and its partitions: everybody who is not superuser or BYPASSRLS, the owner of the
table too, sees and writes rows of the tenant it acts in; nobody sees and writes none. tenant_column, owner_column: text,
varchar, uuid or an integer; stamped on insert, and never changed after. The owner rule: with owner_column, own rows alone;
shared_column (boolean): others read the rows where it is true, and write them not; predicate: in place of both, a condition over
the columns, which runs with the rights of whoever runs the statement. writable: rows of many authors, such as
{"insert": "any", "update": "own", "delete": "none"}: all of the tenant read them (or as shared_column or predicate say); what is absent is insert any, and
the others none. editor_column: who wrote last. delegated: who acts on behalf of somebody works on that one''s rows. An owner is
written as a user''s id, or agent:id, system:id. contract: comments/v1, see concord.create_comments.
Idempotent: what stands already is not touched, and takes no lock; other arguments change it in place. Else ACCESS EXCLUSIVE
on the table, bounded by lock_timeout. Returns what stands, with rows_without_tenant and rows_without_owner, which nobody sees
any more (null: the caller is bound itself and could not count them), permissive_policies of others, which no longer narrow
anything, and todo: SQL that is left, such as the index that the policies need. Owner of the table only.
Errors: invalid_request (param names the argument), forbidden, contended.';

create function concord_internal.protect_table(wanted concord_internal.protections, path text)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  rel constant regclass := wanted.rel;
  was concord_internal.protections;
  p concord_internal.protections;
  stands boolean;
  part regclass;
  made_check boolean := false;
  counted jsonb;
begin
  if rel is null or to_regclass(rel::text) is null then
    perform concord_internal.fail('invalid_request', 'rel', 'no such table');
  end if;
  perform concord_internal.demand_owner(rel);
  was := concord_internal.protection_of(rel);
  wanted.groups := concord_internal.groups_of(rel);
  stands := to_jsonb(wanted) - array['id', 'made_check', 'protected_at'] = to_jsonb(was) - array['id', 'made_check', 'protected_at']
            and not exists (select from concord_internal.drift_of(rel));
  perform concord_internal.demand_protection(wanted);
  counted := concord_internal.rows_of_nobody(wanted);  -- before anybody has to wait
  if stands then
    return concord_internal.protection_shown(was, counted);
  end if;
  perform concord_internal.lock_table(rel, true);  -- nobody reads or writes by half a wall
  p := concord_internal.define_protection(wanted);
  execute format('create or replace trigger concord_stamp before insert or update on %s for each row execute function %s()', rel, concord_internal.stamp_function(p.id));
  for part in select r from concord_internal.relations_of(rel) r loop
    perform concord_internal.note_relation(part, rel);
    execute format('create or replace trigger concord_stand before truncate on %s for each statement execute function %s()', part, concord_internal.stamp_function(p.id));
  end loop;
  for part in select r from concord_internal.relations_of(rel) r loop
    perform concord_internal.make_policies(p, part, path);
    execute format('alter table %s enable row level security, force row level security', part);
  end loop;
  if exists (select from pg_attribute where attrelid = rel and attname = p.tenant_column and not attnotnull)
     and not exists (select from pg_constraint where conrelid = rel and conname = 'concord_has_tenant') then
    execute format('alter table %s add constraint concord_has_tenant check (%I is not null) not valid', rel, p.tenant_column);
    made_check := true;
  end if;
  perform concord_internal.seal_protection(rel, made_check);
  return concord_internal.protection_shown(p, counted);
end
$$;

-- Each policy asks who acts once in a statement, by a subselect that depends on no row and is planned into it: a function
-- around it would cost as much again.
create function concord_internal.make_policies(p concord_internal.protections, rel regclass, path text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  columns constant jsonb := concord_internal.columns_of(rel);
  rules constant record := concord_internal.rules_of(p, columns);
  -- What a session may be narrowed to. Said as "is not null", which the planner takes to hold for all rows; of a boolean it
  -- would expect half of them, and plan a page as if it had to look for it.
  before constant text := case when p.groups = '{}' then '(select case when not concord_internal.may_be_narrowed() or concord_internal.session_scope('
                               else 'case when (select concord_internal.may_be_narrowed()) then nullif(coalesce(array['
                                 || (select string_agg(concord_internal.group_expression(g, columns, rel::text), ', ') from unnest(p.groups) g)
                                 || '] operator(pg_catalog.&&) (select concord_internal.session_scope(' end
    || quote_literal(p.rel) || '::pg_catalog.regclass, ''';
  after constant text := case when p.groups = '{}' then ''') is null then true end) is not null'
                              else ''')), true), false) else true end is not null' end;
  policy name;
begin
  foreach policy in array concord_internal.policy_names() loop
    if exists (select from pg_policy where polrelid = rel and polname = policy) then
      execute format('drop policy %I on %s', policy, rel);
    end if;
  end loop;
  execute format('create policy concord_open on %s using (true) with check (true)', rel);
  execute format('create policy concord_wall on %s as restrictive using (%s) with check (%s)', rel, rules.wall, rules.wall);
  begin
    perform set_config('search_path', case when p.predicate is null then 'pg_catalog, pg_temp' else path end, true);
    execute format('create policy concord_read on %s as restrictive for select using (%s)', rel,
                   concat_ws(' and ', '(' || rules.read || ')', before || 'read' || after));
    execute format('create policy concord_insert on %s as restrictive for insert with check (%s)', rel,
                   concat_ws(' and ', '(' || rules."insert" || ')', before || 'create' || after));
    execute format('create policy concord_update on %s as restrictive for update using (%s) with check (%s)', rel,
                   concat_ws(' and ', '(' || rules."update" || ')', before || 'update' || after),
                   concat_ws(' and ', case when p.writable->>'update' = 'any' then 'true' else '(' || rules."update" || ')' end, before || 'update' || after));
    execute format('create policy concord_delete on %s as restrictive for delete using (%s)', rel,
                   concat_ws(' and ', '(' || rules."delete" || ')', before || 'delete' || after));
    perform set_config('search_path', 'pg_catalog, pg_temp', true);
  exception when syntax_error_or_access_rule_violation or feature_not_supported or data_exception then
    if p.predicate is null then
      raise;
    end if;
    perform concord_internal.fail('invalid_request', 'predicate', sqlerrm);
  end;
end
$$;

create function concord.unprotect(rel regclass)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  p concord_internal.protections;
  r concord_internal.protected_relations;
  t record;
  policy name;
begin
  if rel is null then
    perform concord_internal.fail('invalid_request', 'rel', 'no such table');
  end if;
  perform concord_internal.demand_owner(rel);
  p := concord_internal.protection_of(rel);
  if p.id is null then
    return;
  end if;
  perform concord_internal.lock_table(rel, true);
  for r in select * from concord_internal.relations_protected(rel) loop
    foreach policy in array concord_internal.policy_names() loop
      if exists (select from pg_policy where polrelid = r.rel and polname = policy) then
        execute format('drop policy %I on %s', policy, r.rel);
      end if;
    end loop;
    execute format('alter table %s %s row level security, %s row level security', r.rel,
      case when r.was_enabled then 'enable' else 'disable' end, case when r.was_forced then 'force' else 'no force' end);
  end loop;
  for t in  -- those of the table first, with which its partitions' go; then what was detached
    select g.tgname, g.tgrelid::regclass as rel from pg_trigger g
     where g.tgfoid = to_regprocedure(concord_internal.stamp_function(p.id) || '()') and g.tgparentid = 0 order by g.tgrelid <> unprotect.rel
  loop
    execute format('drop trigger %I on %s', t.tgname, t.rel);
  end loop;
  for t in
    select k.conrelid::regclass as rel from pg_constraint k
     where p.made_check and k.conname = 'concord_has_tenant' and k.coninhcount = 0
       and k.conrelid in (select x.rel from concord_internal.relations_protected(unprotect.rel) x) order by k.conrelid <> unprotect.rel
  loop
    execute format('alter table %s drop constraint concord_has_tenant', t.rel);
  end loop;
  for t in  -- of todo
    select i.indexrelid::regclass as index from pg_index i join pg_class c on c.oid = i.indexrelid
     where i.indrelid = unprotect.rel and c.relname like 'concord\_wall\_%'
  loop
    execute format('drop index %s', t.index);
  end loop;
  perform concord_internal.forget_protection(rel);
end
$$;
comment on function concord.unprotect(regclass) is
  'Takes off what protect put on, from the table and its partitions: policies, triggers, the check of the tenant, and the index
of its todo; row-level security is as it was before. A table that is not protected is left as it is. ACCESS EXCLUSIVE, bounded by lock_timeout.
Owner of the table only. Errors: invalid_request, forbidden, contended.';

-- Rows that nobody sees behind the wall; nulls where the caller is behind it, and can't count them.
create function concord_internal.rows_of_nobody(p concord_internal.protections)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  without_tenant bigint;
  without_owner bigint;
begin
  if not row_security_active(p.rel) then
    execute format('select count(*) filter (where %I is null), %s from %s', p.tenant_column,
                   coalesce('count(*) filter (where ' || quote_ident(p.owner_column) || ' is null)', 'null'), p.rel)
      into without_tenant, without_owner;
  end if;
  return jsonb_build_object('rows_without_tenant', without_tenant, 'rows_without_owner', without_owner);
end
$$;

-- What is left to do that is not done under a lock that everybody would wait for.
create function concord_internal.protection_todo(p concord_internal.protections)
returns setof text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  columns constant name[] := array_remove(array[p.tenant_column, case when p.predicate is null and p.writable is null then p.owner_column end], null);
begin
  if not concord_internal.has_index(p.rel, columns) then
    return query select concord_internal.unfinished_index(p.rel, 'concord_wall_' || c.relname) from pg_class c where c.oid = p.rel;
    return next format('create index%s if not exists %I on %s (%s);', case when (select relkind from pg_class where oid = p.rel) = 'p' then '' else ' concurrently' end,
                       'concord_wall_' || (select relname from pg_class where oid = p.rel), p.rel, (select string_agg(quote_ident(c), ', ' order by n) from unnest(columns) with ordinality u(c, n)));
  end if;
  if exists (select from pg_constraint where conrelid = p.rel and conname = 'concord_has_tenant' and not convalidated) then
    return next format('alter table %s validate constraint concord_has_tenant;', p.rel);
  end if;
end
$$;

-- What CREATE INDEX CONCURRENTLY leaves of an index when it is given up, or finds duplicates: it has to go, or IF NOT EXISTS takes it
-- for the index.
create function concord_internal.unfinished_index(rel regclass, name text)
returns setof text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('drop index concurrently %s;', i.indexrelid::regclass)
    from pg_index i join pg_class c on c.oid = i.indexrelid
   where i.indrelid = rel and c.relname = name and not i.indisvalid
$$;

-- Is there an index that begins with these columns, in some order?
create function concord_internal.has_index(rel regclass, columns name[])
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from pg_index i
     where i.indrelid = rel and i.indisvalid and i.indpred is null and i.indnkeyatts >= cardinality(columns)
       and not exists (
         select from generate_series(0, cardinality(columns) - 1) n
          where not exists (select from pg_attribute a where a.attrelid = rel and a.attnum = i.indkey[n] and a.attname = any (columns))))
$$;

-- What protect answers: see there.
create function concord_internal.protection_shown(p concord_internal.protections, counted jsonb)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select to_jsonb(p) - array['id', 'groups', 'made_check'] || counted || jsonb_build_object(
    'permissive_policies', (select coalesce(jsonb_agg(o.polname order by o.polname), '[]') from pg_policy o
                             where o.polrelid = p.rel and o.polpermissive and o.polname <> 'concord_open'),
    'todo', (select coalesce(jsonb_agg(t), '[]') from concord_internal.protection_todo(p) t))
$$;

create function concord_internal.protections_shown()
returns setof concord_internal.protections
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.* from concord_internal.protections p
   where exists (select from pg_class c where c.oid = p.rel)
     and (has_any_column_privilege(concord_internal.caller(), p.rel, 'select') or concord_internal.owns(p.rel))
$$;

create view concord.protected as
  select rel, tenant_column, owner_column, shared_column, predicate, writable, editor_column, delegated, contract, protected_at
    from concord_internal.protections_shown();
comment on view concord.protected is
  'The tables under concord.protect that the caller may select from, or owns: what it was told, and since when.';

select concord_internal.open_to('concord.protect(regclass,name,name,name,text,jsonb,name,boolean,text)', 'public');
select concord_internal.open_to('concord_internal.protect_table(concord_internal.protections,text)', 'public');
select concord_internal.open_to('concord_internal.make_policies(concord_internal.protections,regclass,text)', 'public');
select concord_internal.open_to('concord.unprotect(regclass)', 'public');
select concord_internal.open_to('concord_internal.rows_of_nobody(concord_internal.protections)', 'public');
select concord_internal.open_to('concord_internal.protection_shown(concord_internal.protections,jsonb)', 'public');
select concord_internal.open_to('concord_internal.unfinished_index(regclass,text)', 'public');
select concord_internal.open_to('concord_internal.protection_todo(concord_internal.protections)', 'public');
select concord_internal.open_to('concord_internal.has_index(regclass,name[])', 'public');
select concord_internal.open_to('concord_internal.protections_shown()', 'public');
select concord_internal.open_view_to('concord.protected', 'public');
