-- The inverse of add_pack, in one transaction.
create function concord.remove_pack(rel regclass, pack text)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  kept jsonb := '[]';
  o record;
  hanging text;
begin
  if rel is null or to_regclass(rel::text) is null then
    perform concord_internal.fail('invalid_request', 'rel', 'no such table');
  end if;
  perform concord_internal.demand_owner(rel);
  if not exists (select from concord_internal.packs_of(rel) p where p.pack = remove_pack.pack) then
    perform concord_internal.fail('invalid_request', 'pack', format('%s has no pack %s', rel, coalesce(quote_literal(pack), 'null')));
  end if;
  perform concord_internal.demand_idle(rel, pack);
  perform concord_internal.lock_table(rel, true);
  -- What was made last goes first. A pack's planned objects that are there by now are the pack's.
  for o in select * from concord_internal.objects_of(rel, pack) x order by x.kind = 'column', x.n desc loop
    if o.state in ('changed', 'gone') and o.kind <> 'column' then
      kept := kept || jsonb_build_object('kind', o.kind, 'name', o.name, 'state', o.state);
    elsif o.state in ('made', 'changed') then
      hanging := concord_internal.hanging_on(rel, pack, o.name);
      if o.kind = 'column' and hanging is not null then
        perform concord_internal.fail('invalid_request', 'pack', format('%s on %s needs the column %I', hanging, rel, o.name));
      end if;
      begin
        perform concord_internal.drop_object(rel, o.kind, o.name);
      exception when dependent_objects_still_exist then
        get stacked diagnostics hanging = pg_exception_detail;
        perform concord_internal.fail('invalid_request', 'pack', format('something depends on the %s %s: %s', o.kind, o.name, hanging));
      end;
    end if;
    perform concord_internal.forget_object(rel, pack, o.kind, o.name);
  end loop;
  perform concord_internal.forget_pack(rel, pack);
  return jsonb_build_object('rel', rel, 'pack', pack, 'kept', kept);
end
$$;
comment on function concord.remove_pack(regclass, text) is
  'Takes a column pack off a table again, with what its columns hold: everything that add_pack made there, and nothing else.
Refused while concord.protect or concord.track rests on one of its columns, another pack uses one, or anything of the user''s
depends on what would go (indexes and constraints too, which DROP COLUMN would take along). What the user changed, but for
columns, stays, and is answered under "kept". ACCESS EXCLUSIVE on the table, bounded by lock_timeout. Owner of the table only.
Errors: invalid_request (param: rel, pack), forbidden, contended.';

-- Raises while Concord itself rests on a column of the pack, or another pack does.
create function concord_internal.demand_idle(rel regclass, pack text)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  made constant text[] := array(select o.name from concord_internal.objects_of(rel, pack) o where o.kind = 'column' and o.state <> 'gone');
  bad text;
begin
  perform concord_internal.demand_owner(rel);
  select coalesce(
    (select format('concord.protect rests on the column %I: unprotect the table first', c) from concord_internal.protections p, unnest(made) c
      where p.rel = demand_idle.rel and c in (p.tenant_column, p.owner_column, p.shared_column, p.editor_column) limit 1),
    (select format('concord.track rests on the column %I: untrack the table, or track it without', c) from concord_internal.models m, unnest(made) c
      where m.rel = demand_idle.rel and (c = m.tenant_column or c = any (m.key_columns) or array_to_string(m.groups, ' ') like '%{' || c || '}%') limit 1),
    (select format('the pack %s uses the column %I', p.pack, c) from concord_internal.packs p, unnest(made) c
      where p.rel = demand_idle.rel and p.pack <> demand_idle.pack and exists (select from jsonb_array_elements(p.spec->'columns') e(e) where e.e->>'name' = c) limit 1))
    into bad;
  if bad is not null then
    perform concord_internal.fail('invalid_request', 'pack', bad);
  end if;
end
$$;

-- Something that goes without a word when the column is dropped, and is not the pack's; null: nothing.
create function concord_internal.hanging_on(rel regclass, pack text, col text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select min(pg_describe_object(d.classid, d.objid, 0))
    from pg_depend d
    join pg_attribute a on a.attrelid = rel and a.attnum = d.refobjsubid and a.attname = col
    left join pg_class i on d.classid = 'pg_class'::regclass and i.oid = d.objid and d.objsubid = 0
    left join pg_constraint k on d.classid = 'pg_constraint'::regclass and k.oid = d.objid and k.contype <> 'n'
   where d.refclassid = 'pg_class'::regclass and d.refobjid = rel and d.deptype in ('a', 'n')
     and (i.relkind in ('i', 'I') or k.conrelid = rel or d.classid = 'pg_statistic_ext'::regclass)
     and not exists (select from concord_internal.objects_of(rel, pack) o
                      where o.state in ('made', 'planned') and (o.kind = 'constraint' and o.name = k.conname or o.kind = 'index' and o.name = i.relname))
$$;

select concord_internal.open_to('concord.remove_pack(regclass,text)', 'public');
select concord_internal.open_to('concord_internal.demand_idle(regclass,text)', 'public');
select concord_internal.open_to('concord_internal.hanging_on(regclass,text,text)', 'public');
