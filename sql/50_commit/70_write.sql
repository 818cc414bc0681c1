-- 5 write: as if the caller had issued the statements with just those columns: its grants, policies, constraints and
-- triggers apply. Neighbouring operations of one kind over the same columns, on different rows, are one statement.

-- Data with references replaced by the ids that earlier operations produced.
create function concord_internal.with_ids(data jsonb, done concord_internal.operation[])
returns jsonb
language sql
immutable
as $$
  select jsonb_object_agg(k, coalesce(to_jsonb(done[concord_internal.reference(v) + 1].key), v)) from jsonb_each(data) e(k, v)
$$;

-- The key's columns as data, from a canonical key.
create function concord_internal.key_data(m concord_internal.models, key text)
returns jsonb
language sql
immutable
as $$
  select case when cardinality(m.key_columns) = 1 then jsonb_build_object(m.key_columns[1], key) else key::jsonb end
$$;

-- One statement for operations of the same type, model and columns. Returns the keys of created rows, in order.
create function concord_internal.write_rows(m concord_internal.models, type text, fields text[], keys text[], data jsonb[], tenant text)
returns text[]
language plpgsql
as $$
declare
  key_text constant text := concord_internal.key_expression(m.key_columns, m.columns, 't');
  produced text[];
  written bigint;
begin
  if type = 'create' then
    if fields = '{}' then
      execute format('insert into %s as t default values returning array[%s]', m.rel, key_text) into produced;
    elsif keys[1] is null then  -- ids by default: one row at a time, so that each is known
      execute format('insert into %s as t (%s) select %s from jsonb_to_record($1) v(%s) returning array[%s]', m.rel,
        (select string_agg(quote_ident(f), ', ') from unnest(fields) f), (select string_agg(format('v.%I', f), ', ') from unnest(fields) f),
        concord_internal.record_of(m, fields), key_text) into produced using data[1];
    else
      execute format('insert into %s (%s) select %s from unnest($1) with ordinality u(d, i), jsonb_to_record(u.d) v(%s) order by u.i', m.rel,
        (select string_agg(quote_ident(f), ', ') from unnest(fields) f), (select string_agg(format('v.%I', f), ', ') from unnest(fields) f),
        concord_internal.record_of(m, fields)) using data;
      produced := keys;
    end if;
    get diagnostics written = row_count;
  elsif type = 'update' and cardinality(keys) = 1 and cardinality(m.key_columns) = 1 then
    execute 'update ' || m.rel || ' t set '
        || case when cardinality(fields) = 1 then quote_ident(fields[1]) || ' = v.' || quote_ident(fields[1])
                else (select string_agg(format('%1$I = v.%1$I', f), ', ') from unnest(fields) f) end
        || ' from jsonb_to_record($2) v(' || concord_internal.record_of(m, fields) || ') where t.' || quote_ident(m.key_columns[1])
        || ' = $1::' || (m.columns->(m.key_columns[1]::text)->>'t') using keys[1], data[1];
    get diagnostics written = row_count;
  elsif type = 'update' then
    execute format('update %s t set %s from (select %s, u.d from unnest($1, $2) u(k, d), jsonb_to_record(%s) k(%s)) u, jsonb_to_record(u.d) v(%s) where %s', m.rel,
        (select string_agg(format('%1$I = v.%1$I', f), ', ') from unnest(fields) f),
        (select string_agg(format('k.%1$I as concord_key_%2$s', c, i), ', ') from unnest(m.key_columns) with ordinality k(c, i)),
        case when cardinality(m.key_columns) = 1 then format('jsonb_build_object(%L, u.k)', m.key_columns[1]) else 'u.k::jsonb' end,
        concord_internal.record_of(m, m.key_columns::text[]),
        concord_internal.record_of(m, fields),
        (select string_agg(format('t.%1$I = u.concord_key_%2$s', c, i), ' and ') from unnest(m.key_columns) with ordinality k(c, i))) using keys, data;
    get diagnostics written = row_count;
  else
    execute replace(concord_internal.rows_by_key(m, '', tenant), 'select  from ' || m.rel, 'delete from ' || m.rel) using keys;
    get diagnostics written = row_count;
  end if;
  if written <> cardinality(keys) then
    -- A locked row that a write does not reach: a policy or a trigger of the table swallowed it.
    perform concord_internal.fail('forbidden', null, format('%s of %s rows of %s were not written: a policy or a trigger of the table stopped them',
                                  cardinality(keys) - written, cardinality(keys), m.name));
  end if;
  return produced;
end
$$;

-- Writes what is not held, in request order; fills in keys of created rows and outcomes.
create function concord_internal.write_request(inout r concord_internal.request, models concord_internal.models[], tenant text)
language plpgsql
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
      perform concord_internal.write_rows(models[o.m], o.type, o.fields, array[o.key], array[o.data], tenant);
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
    if o.type = 'create' and keys[1] is null then
      next := operations[at[1]];
      next.key := produced[1];
      operations[at[1]] := next;
    end if;
  end loop;
  r.operations := operations;
end
$$;

select concord_internal.open_to('concord_internal.with_ids(jsonb,concord_internal.operation[])', 'concord_app');
select concord_internal.open_to('concord_internal.key_data(concord_internal.models,text)', 'concord_app');
select concord_internal.open_to('concord_internal.write_rows(concord_internal.models,text,text[],text[],jsonb[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.write_request(concord_internal.request,concord_internal.models[],text)', 'concord_app');
