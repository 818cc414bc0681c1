-- What can be said of a pack before anything is done: whether it is one, and whether the table has room for it.

-- A column's type and default as Postgres itself reads them, under the caller's search_path: from a temporary table that is gone
-- again at once. instant: ADD COLUMN need not write the rows that are there, for which it takes a default that is the same
-- for all.
create function concord_internal.try_column(type text, expression text, out typ oid, out typmod integer, out collation oid, out instant boolean)
language plpgsql
as $$
begin
  create temporary table concord_pack_column ();
  execute pg_catalog.format('alter table pg_temp.concord_pack_column add c %s %s', type, 'default ' operator(pg_catalog.||) expression);
  select a.atttypid, a.atttypmod, a.attcollation, expression is null or a.atthasmissing into typ, typmod, collation, instant
    from pg_catalog.pg_attribute a
   where a.attrelid operator(pg_catalog.=) 'pg_temp.concord_pack_column'::pg_catalog.regclass and a.attname operator(pg_catalog.=) 'c';
  drop table pg_temp.concord_pack_column;
end
$$;

-- A document without what is said of the rows of one table.
create function concord_internal.but_fills(document jsonb)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select document || jsonb_build_object('columns', (select jsonb_agg(c.e - 'fill' order by c.n) from jsonb_array_elements(document->'columns') with ordinality c(e, n)))
$$;

-- Raises unless the document is one, and the table can have the pack.
create function concord_internal.demand_pack(rel regclass, document jsonb)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  was concord_internal.packs;
  part text;
  bad text;
begin
  if rel is null or to_regclass(rel::text) is null then
    perform concord_internal.fail('invalid_request', 'rel', 'no such table');
  end if;
  perform concord_internal.demand_owner(rel);
  if not exists (select from pg_class c where c.oid = rel and c.relkind in ('r', 'p') and c.relpersistence <> 't' and not c.relispartition) then
    perform concord_internal.fail('invalid_request', 'rel', 'packs are for ordinary and for partitioned tables');
  end if;
  if jsonb_typeof(document) is distinct from 'object' then
    perform concord_internal.fail('invalid_request', 'document', 'a pack''s document is a JSON object: pyconcord.packs makes it');
  end if;
  if (document->>'pack' ~ '^[a-z_][a-z_0-9]{0,59}$') is not true then
    perform concord_internal.fail('invalid_request', 'document.pack', 'a name of small letters, digits and _');
  end if;
  if (jsonb_typeof(document->'version') = 'number' and document->>'version' ~ '^[1-9][0-9]{0,8}$') is not true then
    perform concord_internal.fail('invalid_request', 'document.version', 'a whole number from 1 on');
  end if;
  select key into bad from jsonb_object_keys(document) key
   where key not in ('pack', 'version', 'columns', 'constraints', 'indexes', 'statements') limit 1;
  if found then
    perform concord_internal.fail('invalid_request', 'document.' || bad, 'a pack has columns, constraints, indexes and statements');
  end if;
  foreach part in array array['columns', 'constraints', 'indexes', 'statements'] loop
    if jsonb_typeof(document->part) is distinct from 'array' then
      perform concord_internal.fail('invalid_request', 'document.' || part, 'a list');
    end if;
    select format('document.%s[%s]', part, u.n - 1) into bad from jsonb_array_elements(document->part) with ordinality u(e, n)
     where case when part = 'statements' then jsonb_typeof(u.e) <> 'string'
                else jsonb_typeof(u.e) <> 'object' or coalesce(u.e->>'name', '') = '' or coalesce(u.e->>(case part when 'columns' then 'type' else 'definition' end), '') = '' end
     limit 1;
    if found then
      perform concord_internal.fail('invalid_request', bad, case part when 'statements' then 'a statement' when 'columns' then 'a column has a name and a type'
                                                                      else 'it has a name and a definition' end);
    end if;
  end loop;
  -- What each part says of itself: known words, of their types.
  select format('document.%s[%s].%s', p.part, e.n - 1, k.key) into bad
    from unnest(array['columns', 'constraints', 'indexes']) p(part)
   cross join lateral jsonb_array_elements(document->p.part) with ordinality e(e, n)
   cross join lateral jsonb_each(e.e) k
   where case when k.key in ('notNull', 'unique') then jsonb_typeof(k.value) <> 'boolean' else jsonb_typeof(k.value) <> 'string' end
      or k.key <> all (case p.part when 'columns' then array['name', 'type', 'notNull', 'default', 'identity', 'generated', 'fill', 'comment']
                                 when 'indexes' then array['name', 'definition', 'unique'] else array['name', 'definition'] end)
      or k.key = 'identity' and k.value not in ('"always"', '"by default"')
   order by 1 limit 1;
  if found then
    perform concord_internal.fail('invalid_request', bad, 'not a word of a pack''s document, or not of its type');
  end if;
  select * into was from concord_internal.packs_of(rel) p where p.pack = document->>'pack';
  if was.version > (document->>'version')::integer then
    perform concord_internal.fail('invalid_request', 'document.version',
      format('%s has version %s of the pack already: take a pyconcord that knows it', rel, was.version));
  elsif was.version = (document->>'version')::integer and concord_internal.but_fills(was.spec) <> concord_internal.but_fills(document) then
    perform concord_internal.fail('invalid_request', 'document',
      format('%s has version %s of the pack as it was defined otherwise: another definition is another version, and other names are set after concord.remove_pack', rel, was.version));
  end if;
end
$$;

-- Raises where something of the user's has a name that the pack needs, and is something else. What has the type that the
-- pack's column has serves in its place, whatever its default or constraints.
create function concord_internal.demand_room(rel regclass, document jsonb, tried jsonb)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  r record;
begin
  for r in
    select c.e->>'name' as name, c.e->>'type' as type, format_type(a.atttypid, a.atttypmod) as live
      from jsonb_array_elements(document->'columns') c(e)
      join pg_attribute a on a.attrelid = rel and a.attname = c.e->>'name' and not a.attisdropped
     where (a.atttypid, a.atttypmod, a.attcollation)
           is distinct from ((tried->(c.e->>'name')->>'typ')::oid, (tried->(c.e->>'name')->>'typmod')::integer, (tried->(c.e->>'name')->>'collation')::oid)
  loop
    perform concord_internal.fail('invalid_request', 'columns.' || r.name,
      format('%s.%I is %s, and the pack %s has %s there: give its column another name (set %s=…)%s', rel, r.name, r.live, document->>'pack', r.type, r.name,
             case when r.type = 'JSONB' and r.live in ('text', 'character varying', 'json') then ', or turn yours into jsonb by concord.text_to_jsonb' else '' end));
  end loop;
  for r in
    select c.e->>'name' as name from jsonb_array_elements(document->'constraints') c(e)
      join pg_constraint k on k.conrelid = rel and k.conname = c.e->>'name'
     where not exists (select from concord_internal.objects_of(rel, document->>'pack') o where o.kind = 'constraint' and o.name = c.e->>'name')
  loop
    perform concord_internal.fail('invalid_request', 'constraints.' || r.name, format('%s has a constraint of this name already, and it is not the pack''s', rel));
  end loop;
  for r in
    select c.e->>'name' as name from jsonb_array_elements(document->'indexes') c(e)
      join pg_class i on i.relname = c.e->>'name' and i.relnamespace = (select relnamespace from pg_class where oid = rel)
     where not exists (select from concord_internal.objects_of(rel, document->>'pack') o where o.kind = 'index' and o.name = c.e->>'name')
  loop
    perform concord_internal.fail('invalid_request', 'indexes.' || r.name, format('there is a relation of this name in the schema of %s already, and it is not the pack''s', rel));
  end loop;
  if (select count(*) from jsonb_array_elements(document->'constraints') c(e) where c.e->>'definition' ~* '^primary key') > 0
     and concord_internal.key_columns_of(rel) is not null
     and not exists (select from concord_internal.objects_of(rel, document->>'pack') o where o.source->>'definition' ~* '^primary key') then
    perform concord_internal.fail('invalid_request', 'constraints', format('%s has a primary key already', rel));
  end if;
end
$$;

create function concord_internal.try_columns(document jsonb)
returns jsonb
language plpgsql
as $$
declare
  tried jsonb := '{}';
  c jsonb;
  n integer := 0;
begin
  for c in select e from pg_catalog.jsonb_array_elements(document operator(pg_catalog.->) 'columns') e loop
    begin
      tried := tried operator(pg_catalog.||) pg_catalog.jsonb_build_object(c operator(pg_catalog.->>) 'name',
        (select pg_catalog.to_jsonb(t) from concord_internal.try_column(c operator(pg_catalog.->>) 'type', c operator(pg_catalog.->>) 'default') t));
    exception when syntax_error_or_access_rule_violation or feature_not_supported or data_exception then
      perform concord_internal.fail('invalid_request', pg_catalog.format('document.columns[%s]', n), sqlerrm);
    end;
    n := n operator(pg_catalog.+) 1;
  end loop;
  return tried;
end
$$;

select concord_internal.open_to('concord_internal.try_column(text,text)', 'public');
select concord_internal.open_to('concord_internal.but_fills(jsonb)', 'public');
select concord_internal.open_to('concord_internal.demand_pack(regclass,jsonb)', 'public');
select concord_internal.open_to('concord_internal.demand_room(regclass,jsonb,jsonb)', 'public');
select concord_internal.open_to('concord_internal.try_columns(jsonb)', 'public');
