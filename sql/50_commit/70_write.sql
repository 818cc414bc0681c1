-- 5 write: as if the caller had issued the statements with just those columns: its grants, policies, constraints and
-- triggers apply. Neighbouring operations of one kind over the same columns, on different rows, are one statement. Each
-- statement gives back the keys that it left, since it may have changed them itself, or a BEFORE trigger may have; but it
-- returns nothing that the caller could not have selected, so that who may only insert can.

-- Data with references replaced by the ids that earlier operations produced; null where one of those is not known.
create function concord_internal.with_ids(data jsonb, done concord_internal.operation[])
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when not bool_or(e.ref is not null and done[e.ref + 1].key is null)
              then jsonb_object_agg(e.key, case when e.ref is null then e.value else to_jsonb(done[e.ref + 1].key) end) end
    from (select d.key, d.value, concord_internal.reference(d.value) as ref from jsonb_each(data) d) e
$$;

-- The key's columns as data, from a canonical key.
create function concord_internal.key_data(m concord_internal.models, key text)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when cardinality(m.key_columns) = 1 then jsonb_build_object(m.key_columns[1], key) else key::jsonb end
$$;

-- Could a BEFORE trigger give a created row another key?
create function concord_internal.rewrites_rows(m concord_internal.models)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return m.partitioned or exists (select from pg_trigger t where t.tgrelid = m.rel and t.tgtype & 7 = 7 and t.tgenabled <> 'D');  -- ROW, BEFORE, INSERT
end
$$;

-- The statement for operations of the same type, model and columns, `many` of them or one. What it takes and gives back is
-- said in write_rows. with_keys: it returns the keys that it left.
create function concord_internal.write_statement(m concord_internal.models, type text, fields text[], many boolean, with_keys boolean, tenant text)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  key_text constant text := concord_internal.key_expression(m.key_columns, m.columns, 't');
  listed constant text := (select string_agg(quote_ident(f), ', ') from unnest(fields) f);
  valued constant text := (select string_agg(format('v.%I', f), ', ') from unnest(fields) f);
  assigned constant text := (select string_agg(format('%1$I = v.%1$I', f), ', ') from unnest(fields) f);
begin
  if type = 'create' and fields = '{}' then
    return format('insert into %s as t default values', m.rel) || case when with_keys then ' returning 1::bigint, ' || key_text else '' end;
  elsif type = 'create' then
    return format('insert into %s as t (%s) select %s from %s pg_catalog.jsonb_to_record(%s) v(%s)%s', m.rel, listed, valued,
             case when many then 'pg_catalog.unnest($2) with ordinality u(d, i),' else '' end, case when many then 'u.d' else '$2[1]' end,
             concord_internal.record_of(m, fields), case when many then ' order by u.i' else '' end)
           || case when with_keys then ' returning null::bigint, ' || key_text else '' end;
  elsif type = 'update' and not many and cardinality(m.key_columns) = 1 then
    return format('update %s t set %s from pg_catalog.jsonb_to_record($2[1]) v(%s) where t.%I operator(pg_catalog.=) $1[1]::%s returning 1::bigint, %s',
             m.rel, assigned, concord_internal.record_of(m, fields), m.key_columns[1], m.columns->(m.key_columns[1]::text)->>'t', key_text);
  elsif type = 'update' then
    return format('update %s t set %s from (select %s, u.d, u.i from rows from (pg_catalog.unnest($1), pg_catalog.unnest($2)) with ordinality u(k, d, i),'
                  ' pg_catalog.jsonb_to_record(%s) k(%s)) u, pg_catalog.jsonb_to_record(u.d) v(%s) where %s returning u.i, %s', m.rel, assigned,
             (select string_agg(format('k.%1$I as concord_key_%2$s', c, i), ', ') from unnest(m.key_columns) with ordinality k(c, i)),
             case when cardinality(m.key_columns) = 1 then format('pg_catalog.jsonb_build_object(%L, u.k)', m.key_columns[1]) else 'u.k::jsonb' end,
             concord_internal.record_of(m, m.key_columns::text[]),
             concord_internal.record_of(m, fields),
             (select string_agg(format('t.%1$I operator(pg_catalog.=) u.concord_key_%2$s', c, i), ' and ') from unnest(m.key_columns) with ordinality k(c, i)),
             key_text);
  end if;
  return regexp_replace(concord_internal.rows_by_key(m, '', tenant), '^select +from ', 'delete from ');
end
$$;

-- Runs such a statement, under the caller's search_path: $1 the keys, $2 the data. The keys that it left, in their order; of
-- a create whose key is not told back, the one that was given. Null when fewer rows were written.
create function concord_internal.run_write(statement text, with_keys boolean, keys text[], data jsonb[], out produced text[], out written bigint)
language plpgsql
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  place bigint;
  key text;
begin
  produced := keys;
  written := 0;
  perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
  if with_keys then
    for place, key in execute statement using keys, data loop
      written := written operator(pg_catalog.+) 1;
      produced[coalesce(place, written)] := key;
    end loop;
  else
    execute statement using keys, data;
    get diagnostics written = row_count;
  end if;
  perform pg_catalog.set_config('search_path', was_path, true);
end
$$;

-- One statement for operations of the same type, model and columns. Returns the keys of their rows afterwards, in order.
create function concord_internal.write_rows(m concord_internal.models, type text, fields text[], keys text[], data jsonb[], tenant text)
returns text[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  many constant boolean := cardinality(keys) > 1;
  given constant boolean := keys[1] is not null;
  with_keys constant boolean := type = 'update' or type = 'create' and (not given or concord_internal.rewrites_rows(m)) and concord_internal.may_find(m);
  statement constant text := concord_internal.write_statement(m, type, fields, many, with_keys, tenant);
  done record;
begin
  if type = 'create' and with_keys and given and row_security_active(m.rel) then
    -- A policy may let the caller insert a row that it lets nobody see.
    begin
      select * into done from concord_internal.run_write(statement, true, keys, data);
    exception when insufficient_privilege then
      select * into done from concord_internal.run_write(concord_internal.write_statement(m, type, fields, many, false, tenant), false, keys, data);
    end;
  else
    select * into done from concord_internal.run_write(statement, with_keys, keys, data);
  end if;
  if done.written <> cardinality(keys) then
    -- A locked row that a write does not reach: a policy or a trigger of the table swallowed it.
    perform concord_internal.fail('forbidden', null, format('%s of %s rows of %s were not written: a policy or a trigger of the table stopped them',
                                  cardinality(keys) - done.written, cardinality(keys), m.name));
  end if;
  return done.produced;
end
$$;

-- Writes what is not held, in request order; fills in outcomes, and the keys that rows have afterwards.
create function concord_internal.write_request(inout r concord_internal.request, models concord_internal.models[], tenant text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  o concord_internal.operation;
  next concord_internal.operation;
  keys text[];
  data jsonb[];
  at integer[];
  produced text[];
  operations concord_internal.operation[] := r.operations;
  many constant integer := cardinality(operations);
  repeats constant boolean := many > 1 and (select count(*) > count(distinct (u.m, u.key)) from unnest(operations) u);
  i integer := 1;
begin
  o := operations[1];
  if many = 1 and o.type <> 'create' and not o.refs then  -- most commits
    if o.outcome is null then
      produced := concord_internal.write_rows(models[o.m], o.type, o.fields, array[o.key], array[o.data], tenant);
      o.key := produced[1];
      o.outcome := 'applied';
      r.operations := array[o];
    end if;
    return;
  end if;
  while i <= many loop
    o := operations[i];
    if o.outcome is not null then
      i := i + 1;
      continue;
    end if;
    keys := '{}';
    data := '{}';
    at := '{}';
    loop
      next := operations[i];
      if next.ref is not null then
        next.key := (operations[next.ref + 1]).key;
        if next.key is null then
          perform concord_internal.fail('forbidden', format('operations[%s].id', next.n), 'you may not select what the row was given as its id');
        end if;
      end if;
      if next.type = 'create' and next.key is not null then
        next.data := next.data || concord_internal.key_data(models[next.m], next.key);
        next.fields := array(select k from jsonb_object_keys(next.data) k);
        if cardinality(keys) = 0 then
          o.fields := next.fields;
        end if;
      end if;
      exit when cardinality(keys) > 0 and (next.type <> o.type or next.m <> o.m or next.fields is distinct from o.fields
                                           or next.refs or next.ref is not null or next.key is null or keys[cardinality(keys)] is null or (repeats and next.key = any (keys)));
      if next.refs then
        next.data := concord_internal.with_ids(next.data, operations);
        if next.data is null then
          perform concord_internal.fail('forbidden', format('operations[%s].data', next.n), 'you may not select what a row was given as its id');
        end if;
      end if;
      next.outcome := 'applied';
      operations[i] := next;
      keys := keys || next.key;
      data := data || next.data;
      at := at || i;
      loop  -- those that are held or unchanged don't break a run
        i := i + 1;
        exit when i > many or (operations[i]).outcome is null;
      end loop;
      exit when i > many;
    end loop;
    produced := concord_internal.write_rows(models[o.m], o.type, o.fields, keys, data, tenant);
    for n in 1 .. cardinality(at) loop
      continue when produced[n] is not distinct from keys[n];
      next := operations[at[n]];
      next.key := produced[n];
      operations[at[n]] := next;
      -- The same row, as earlier operations left it, has this key now.
      if repeats and o.type = 'update' then
        for earlier in 1 .. at[n] - 1 loop
          next := operations[earlier];
          if next.key = keys[n] and next.m = o.m and next.outcome is not null and next.type <> 'delete' then
            next.key := produced[n];
            operations[earlier] := next;
          end if;
        end loop;
      end if;
    end loop;
  end loop;
  r.operations := operations;
end
$$;

select concord_internal.open_to('concord_internal.with_ids(jsonb,concord_internal.operation[])', 'concord_app');
select concord_internal.open_to('concord_internal.key_data(concord_internal.models,text)', 'concord_app');
select concord_internal.open_to('concord_internal.rewrites_rows(concord_internal.models)', 'concord_app');
select concord_internal.open_to('concord_internal.write_statement(concord_internal.models,text,text[],boolean,boolean,text)', 'concord_app');
select concord_internal.open_to('concord_internal.run_write(text,boolean,text[],jsonb[])', 'concord_app');
select concord_internal.open_to('concord_internal.write_rows(concord_internal.models,text,text[],text[],jsonb[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.write_request(concord_internal.request,concord_internal.models[],text)', 'concord_app');
