-- What is missing, one statement for each thing. Computed anew from the catalogs before each stage, so that a run which was
-- cut short goes on where it stopped.
create type concord_internal.pack_step as (statement text, kind text, name text, source jsonb, planned boolean);

-- Up to this size (in bytes, of the table with its partitions) an index is built, and a column written into all rows, under
-- the lock; beyond it those who use the table would wait too long.
create function concord_internal.is_small(rel regclass)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select sum(pg_relation_size(r)) <= 8 * 1024 * 1024 from concord_internal.relations_of(rel) r
$$;

-- No rows, and none that row-level security hides.
create function concord_internal.is_empty(rel regclass)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  any_row boolean;
begin
  if (select sum(pg_relation_size(r)) from concord_internal.relations_of(rel) r) = 0 then
    return true;
  elsif row_security_active(rel) then
    return false;
  end if;
  execute format('select exists (select from %s)', rel) into any_row;
  return not any_row;
end
$$;

create function concord_internal.pack_steps(rel regclass, document jsonb, stage text, tried jsonb)
returns setof concord_internal.pack_step
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  pack constant text := document->>'pack';
  empty constant boolean := concord_internal.is_empty(rel);
  small constant boolean := concord_internal.is_small(rel);
  partitioned constant boolean := (select relkind = 'p' from pg_class where oid = rel);
  p jsonb;
  r record;
  col text;
  made boolean;
  definition text;
begin
  if stage = 'columns' then
    for p in
      select c.e from jsonb_array_elements(document->'columns') with ordinality c(e, n)
       where not exists (select from pg_attribute a where a.attrelid = rel and a.attname = c.e->>'name' and not a.attisdropped)
         and not exists (select from concord_internal.objects_of(rel, pack) o where o.kind = 'column' and o.name = c.e->>'name')
       order by c.n
    loop
      col := p->>'name';
      made := p ? 'identity' or p ? 'generated';
      if not small and made then
        perform concord_internal.fail('invalid_request', 'columns.' || col,
          format('%s is too large to write such a column into its rows under a lock: make it first', rel));
      elsif not empty and (p->>'notNull')::boolean and not (p ? 'fill' or p ? 'default' or made) then
        perform concord_internal.fail('invalid_request', 'columns.' || col,
          format('%s has rows: say what they have in this column (fill %s=…)', rel, col));
      elsif not empty and p ? 'fill' and row_security_active(rel) then
        perform concord_internal.fail('invalid_request', 'rel',
          format('row-level security hides rows of %s from you, which are to be filled: add packs before concord.protect', rel));
      end if;
      -- Whole at once, where that writes no rows, or few; else bare, to be filled in batches.
      if empty or made or (not p ? 'fill' and (tried->col->>'instant')::boolean and (p ? 'default' or not (p->>'notNull')::boolean)) then
        definition := concat_ws(' ', p->>'type', 'generated always as (' || (p->>'generated') || ') stored',
          'generated ' || (p->>'identity') || ' as identity', 'default ' || (p->>'default'),
          case when (p->>'notNull')::boolean then 'not null' end);
        return next row(format('alter table %s add column %I %s', rel, col, definition), 'column', col, p, false)::concord_internal.pack_step;
      else
        definition := concat_ws(', ', p->>'type', format('alter column %I set default ', col) || (p->>'default'));
        return next row(format('alter table %s add column %I %s', rel, col, definition), 'column', col, p, false)::concord_internal.pack_step;
      end if;
      if p ? 'comment' then
        return next row(format('comment on column %s.%I is %L', rel, col, p->>'comment'), null, null, null, null)::concord_internal.pack_step;
      end if;
    end loop;
  elsif stage in ('filled', 'not null') then
    -- Shown to hold by a check that is validated without a lock that stops writers; SET NOT NULL then takes its word.
    for r in
      select o.name, o.source, 'concord_filled_' || a.attnum as guard from concord_internal.objects_of(rel, pack) o
        join pg_attribute a on a.attrelid = rel and a.attname = o.name and not a.attisdropped and not a.attnotnull
       where o.kind = 'column' and (o.source->>'notNull')::boolean and o.state = 'made' order by o.n
    loop
      if stage = 'filled' and not exists (select from pg_constraint k where k.conrelid = rel and k.conname = r.guard) then
        definition := format('alter table %s add constraint %I check (%I is not null) not valid', rel, r.guard, r.name);
        return next row(definition, null, null, null, null)::concord_internal.pack_step;
      elsif stage = 'not null' then
        definition := format('alter table %s alter column %I set not null, drop constraint if exists %I', rel, r.name, r.guard);
        return next row(definition, 'column', r.name, r.source, false)::concord_internal.pack_step;
      end if;
    end loop;
  elsif stage = 'constraints' then
    for p in
      select c.e from jsonb_array_elements(document->'constraints') with ordinality c(e, n)
       where not exists (select from concord_internal.objects_of(rel, pack) o where o.kind = 'constraint' and o.name = c.e->>'name')
       order by c.n
    loop
      if p->>'definition' ~* '^(unique|primary key)' and not small and not partitioned then
        return next row(null, 'constraint', p->>'name', p, true)::concord_internal.pack_step;
      else
        definition := format('alter table %s add constraint %I %s%s', rel, p->>'name', p->>'definition',
          case when p->>'definition' ~* '^(check|foreign key)' and not empty and not partitioned then ' not valid' else '' end);
        return next row(definition, 'constraint', p->>'name', p, false)::concord_internal.pack_step;
      end if;
    end loop;
  elsif stage = 'valid' then
    return query
      select format('alter table %s validate constraint %I', rel, k.conname), case when o.name is not null then 'constraint' end, o.name, o.source, false
        from pg_constraint k
        left join concord_internal.objects_of(rel, pack) o on o.kind = 'constraint' and o.name = k.conname
       where k.conrelid = rel and not k.convalidated and (o.state = 'made' or k.conname like 'concord\_filled\_%');
  elsif stage = 'indexes' then
    return query
      select case when small or partitioned
                  then format('create %sindex %I on %s %s', case when (p.e->>'unique')::boolean then 'unique ' end, p.e->>'name', rel, p.e->>'definition') end,
             'index', p.e->>'name', p.e, not (small or partitioned)
        from jsonb_array_elements(document->'indexes') with ordinality p(e, n)
       where not exists (select from concord_internal.objects_of(rel, pack) o where o.kind = 'index' and o.name = p.e->>'name')
       order by p.n;
  elsif stage = 'statements' then
    return query
      select s.e #>> '{}', null::text, null::text, s.e, false from jsonb_array_elements(document->'statements') with ordinality s(e, n)
       where not exists (select from concord_internal.objects_of(rel, pack) o where o.source = s.e)
       order by s.n;
  end if;
end
$$;

-- What is planned, as statements for no transaction: nobody waits for them.
create function concord_internal.pack_todo(rel regclass, pack text)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(jsonb_agg(t.statement order by o.n), '[]')
    from concord_internal.objects_of(rel, pack) o
   cross join lateral (
     select u from concord_internal.unfinished_index(rel, o.name) u
     union all
     select format('create %sindex concurrently if not exists %I on %s %s;', case when (o.source->>'unique')::boolean then 'unique ' end, o.name, rel, o.source->>'definition')
      where o.kind = 'index'
     union all
     select format('create unique index concurrently if not exists %I on %s %s;', o.name, rel, substring(o.source->>'definition' from '\(.*$')) where o.kind = 'constraint'
     union all
     select format('alter table %s add constraint %I %s using index %I;', rel, o.name, substring(o.source->>'definition' from '(?i)^(?:unique|primary key)'), o.name)
      where o.kind = 'constraint') t(statement)
   where o.state = 'planned'
$$;

select concord_internal.open_to('concord_internal.is_small(regclass)', 'public');
select concord_internal.open_to('concord_internal.pack_todo(regclass,text)', 'public');
select concord_internal.open_to('concord_internal.is_empty(regclass)', 'public');
select concord_internal.open_to('concord_internal.pack_steps(regclass,jsonb,text,jsonb)', 'public');
