-- What stands differently from what protect made: of the caller's table.
create function concord_internal.drift_of(rel regclass)
returns setof concord.finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return query select * from concord_internal.protection_drift(concord_internal.protection_of(rel));
end
$$;

create function concord_internal.protection_drift(p concord_internal.protections)
returns setof concord.finding
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  again constant text := concord_internal.protect_again(p);
  r record;
  d record;
  live jsonb;
begin
  if p.id is null then
    return;
  elsif not exists (select from pg_class c where c.oid = p.rel) then
    return next row('warning', 'table_gone', null, 'a protected table was dropped', 'select concord.maintain();')::concord.finding;
    return;
  end if;
  for r in
    select x.rel, c.relrowsecurity, c.relforcerowsecurity, n.policies
      from concord_internal.relations_of(p.rel) x(rel) join pg_class c on c.oid = x.rel
      left join concord_internal.protected_relations n on n.rel = x.rel and n.protection = p.id order by x.rel::text
  loop
    if r.policies is null then
      return next row('error', 'partition_open', p.rel::text, format('%s came later, and no policy is on it', r.rel), again)::concord.finding;
      continue;
    end if;
    if not r.relrowsecurity then
      return next row('error', 'security_off', p.rel::text, format('row-level security of %s is disabled: its policies bind nobody', r.rel),
        format('alter table %s enable row level security;', r.rel))::concord.finding;
    end if;
    if not r.relforcerowsecurity then
      return next row('error', 'force_missing', p.rel::text, format('row-level security of %s does not bind its owner', r.rel),
        format('alter table %s force row level security;', r.rel))::concord.finding;
    end if;
    live := concord_internal.policies_of(r.rel);
    for d in select coalesce(a.key, b.key) as name, b.value is null as gone
               from jsonb_each(r.policies) a full join jsonb_each(live) b on a.key = b.key where a.value is distinct from b.value loop
      return next row('error', 'policy_changed', p.rel::text, format('policy %I on %s is %s', d.name, r.rel,
        case when d.gone then 'gone' else 'not as concord made it' end), again)::concord.finding;
    end loop;
    if not exists (select from pg_trigger t where t.tgrelid = r.rel and t.tgname = 'concord_stamp' and t.tgenabled in ('O', 'A')
                      and t.tgfoid = to_regprocedure(concord_internal.stamp_function(p.id) || '()') and t.tgtype = 23 and t.tgqual is null)
       or not exists (select from pg_trigger t where t.tgrelid = r.rel and t.tgname = 'concord_stand' and t.tgenabled in ('O', 'A')
                         and t.tgfoid = to_regprocedure(concord_internal.stamp_function(p.id) || '()') and t.tgtype = 34 and t.tgqual is null) then
      return next row('error', 'stamp_missing', p.rel::text, format('%s lacks a trigger of concord, or it is disabled or altered: whose a row is can be changed, or TRUNCATE empties it', r.rel), again)::concord.finding;
    end if;
  end loop;
  if p.groups <> coalesce((select m.groups from concord_internal.models m where m.rel = p.rel), '{}') then
    return next row('warning', 'groups_changed', p.rel::text, 'its policies know other groups than the model has: sessions with groups may do nothing here', again)::concord.finding;
  end if;
  for d in
    select u.col, u.what from (values (p.tenant_column, 'tenant'), (p.owner_column, 'owner'), (p.shared_column, 'shared'), (p.editor_column, 'editor')) u(col, what)
     where u.col is not null and not exists (select from pg_attribute a where a.attrelid = p.rel and a.attname = u.col and not a.attisdropped)
  loop
    return next row('error', 'column_gone', p.rel::text, format('the %s column %I is gone or renamed: every insert fails', d.what, d.col),
      format('select concord.protect(%L, …); with the columns that there are', p.rel))::concord.finding;
  end loop;
end
$$;

-- The call that makes it whole.
create function concord_internal.protect_again(p concord_internal.protections)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format('select concord.protect(%s);', string_agg(format('%s => %L', e.key, e.value), ', ' order by e.n))
    from (select * from jsonb_each_text(jsonb_strip_nulls(to_jsonb(p) - array['id', 'groups', 'made_check', 'protected_at'])) with ordinality) e(key, value, n)
$$;

select concord_internal.open_to('concord_internal.drift_of(regclass)', 'public');
select concord_internal.open_to('concord_internal.protection_drift(concord_internal.protections)');
select concord_internal.open_to('concord_internal.protect_again(concord_internal.protections)', 'public');
