-- 2 resolve: models, columns, ids and values, still without looking at a row. Definers read concord's tables; everything
-- that runs a user type's input function runs as the caller.

-- The models of these names for the principal: its tenant's own before a shared one. One that is not there has no id.
create function concord_internal.models_named(names text[])
returns concord_internal.models[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  listed concord_internal.models[] := '{}';
  m concord_internal.models;
  wanted text;
begin
  foreach wanted in array names loop
    select o.* into m from concord_internal.models o
     where o.name = wanted and o.tenant in (coalesce((who).tenant, ''), '') and exists (select from pg_class where oid = o.rel)
     order by o.tenant desc limit 1;
    listed := listed || m;
  end loop;
  return listed;
end
$$;

-- The model over the columns as they are now. A column that came, went or was renamed changes nothing here: the trigger's
-- fallback leaves no gap. A retyped one does (values can't be compared across it), as does a partition without triggers.
-- Without an id when it is model_changed.
create function concord_internal.live_model(m concord_internal.models)
returns concord_internal.models
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  live constant jsonb := concord_internal.columns_of(m.rel);
begin
  if concord_internal.retyped(m.columns, live) is not null
     or exists (select from concord_internal.relations_without_triggers(m.rel)) then
    m.id := null;
  end if;
  m.columns := live;
  m.any_value := concord_internal.any_value_columns(live);
  m.key_columns := concord_internal.key_columns_of(m.rel);
  if m.key_columns is null then
    m.id := null;
  end if;
  return m;
end
$$;

-- "a integer, b text": the columns of a typed record made from a JSON object.
create function concord_internal.record_of(m concord_internal.models, fields text[])
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if cardinality(fields) = 1 then
    return quote_ident(fields[1]) || ' ' || (m.columns->fields[1]->>'t');
  end if;
  return (select string_agg(format('%I %s', f, m.columns->f->>'t'), ', ') from unnest(fields) f);
end
$$;

-- The canonical key of an id whose column has one of the commonest types, which need no statement; else null. Raises what
-- Postgres raises.
create function concord_internal.simple_key(m concord_internal.models, id jsonb)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  type constant text := m.columns->(m.key_columns[1]::text)->>'t';
begin
  if cardinality(m.key_columns) <> 1 or jsonb_typeof(id) not in ('string', 'number') then
    return null;
  end if;
  return case type
    when 'uuid' then (id #>> '{}')::uuid::text
    when 'bigint' then (id #>> '{}')::bigint::text
    when 'integer' then (id #>> '{}')::integer::text
    when 'text' then case when jsonb_typeof(id) = 'string' then id #>> '{}' end end;
end
$$;

-- Any other id as an object of the key's columns.
create function concord_internal.key_object(m concord_internal.models, id jsonb)
returns jsonb
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  single constant boolean := cardinality(m.key_columns) = 1;
  object constant jsonb := case when single and jsonb_typeof(id) <> 'object' then jsonb_build_object(m.key_columns[1], id)
                                when jsonb_typeof(id) = 'string' then (id #>> '{}')::jsonb else id end;
begin
  if single and jsonb_typeof(id) = 'number' and m.columns->(m.key_columns[1]::text)->>'t' = 'text' then
    raise invalid_text_representation using message = 'the key is text: give the id as a string';
  elsif jsonb_typeof(object) <> 'object' or not object ?& m.key_columns::text[] or object - m.key_columns::text[] <> '{}' then
    raise invalid_text_representation using message = format('the id is an object of the key''s columns: %s', array_to_string(m.key_columns, ', '));
  elsif exists (select from jsonb_each(object) where value = 'null') then
    raise null_value_not_allowed using message = 'a key has no null';
  end if;
  return object;
end
$$;

-- The statement that makes a canonical key of such an object, $1.
create function concord_internal.key_statement(m concord_internal.models)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return format('select %s from pg_catalog.jsonb_to_record($1) k(%s)', concord_internal.key_expression(m.key_columns, m.columns, 'k'),
                concord_internal.record_of(m, m.key_columns::text[]));
end
$$;

-- Ids as the table has them: typed by the key's input function, and back to canonical text. Raises what Postgres raises.
create function concord_internal.canonical_key(m concord_internal.models, id jsonb)
returns text
language plpgsql
stable
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  key text := concord_internal.simple_key(m, id);
begin
  if key is null then
    perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
    execute concord_internal.key_statement(m) into key using concord_internal.key_object(m, id);
    perform pg_catalog.set_config('search_path', was_path, true);
    if key is null then
      raise null_value_not_allowed using message = 'a key has no null';
    end if;
  end if;
  return key;
end
$$;

-- A row id given as text: the key's text, or a JSON object of a composite key. A type may refuse it in any way it likes.
create function concord_internal.canonical_id(m concord_internal.models, id text)
returns text
language plpgsql
stable
as $$
begin
  return concord_internal.canonical_key(m, pg_catalog.to_jsonb(id));
exception
  when transaction_rollback or lock_not_available or insufficient_resources or operator_intervention then
    raise;
  when others then
    perform concord_internal.fail('invalid_request', 'id', sqlerrm);
end
$$;

-- The statement that tries values ($1) by the input functions of their columns; null where any value fits. `with_references`:
-- they may stand for ids that are not known yet.
create function concord_internal.try_statement(m concord_internal.models, data jsonb, with_references boolean)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  doubtful constant text[] := array(
    select e.key from jsonb_each(data) e
     where m.columns->e.key->>'t' not in ('text', 'jsonb', 'json')
       and (e.value <> 'null' or m.columns->e.key ? 'foreign')  -- a domain may refuse null
       and not (with_references and concord_internal.reference(e.value) is not null));
begin
  if doubtful = '{}' then
    return null;
  end if;
  return format('select %s from pg_catalog.jsonb_to_record($1) v(%s)',
                (select string_agg(format('v.%I', f), ', ') from unnest(doubtful) f), concord_internal.record_of(m, doubtful));
end
$$;

-- Does every value fit its column? Raises what the types raise.
create function concord_internal.try_values(m concord_internal.models, data jsonb, with_references boolean)
returns void
language plpgsql
stable
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  statement constant text := concord_internal.try_statement(m, data, with_references);
begin
  if statement is not null then
    perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
    execute statement using data;
    perform pg_catalog.set_config('search_path', was_path, true);
  end if;
end
$$;

-- Names of an operation or premise that are no columns: '.path' or null.
create function concord_internal.unknown_column(m concord_internal.models, fields text[], condition jsonb)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((select '.data.' || f from unnest(fields) f where m.columns->f is null or m.columns->f->>'g' <> '' limit 1),
                  (select '.where.' || k from jsonb_object_keys(condition) k where not m.columns ? k limit 1));
end
$$;

-- May the caller look for a row by its key? A role that may only insert can't: whether its row is there already is for the
-- constraint to say.
create function concord_internal.may_find(m concord_internal.models)
returns boolean
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return has_table_privilege(m.rel, 'select')
      or (select bool_and(has_column_privilege(m.rel, c, 'select')) from unnest(m.key_columns || m.tenant_column) c where c is not null);
end
$$;

-- The id that stands in the data of a create: all columns of the key, with values that are there already; else null.
create function concord_internal.id_in_data(m concord_internal.models, data jsonb)
returns jsonb
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  key constant text[] := m.key_columns::text[];
begin
  if not data ?& key or exists (select from unnest(key) c where data->c = 'null' or concord_internal.reference(data->c) is not null) then
    return null;
  elsif cardinality(key) = 1 and concord_internal.simple_key(m, data->key[1]) is not null then
    return data->key[1];
  end if;
  return (select jsonb_object_agg(c, data->c) from unnest(key) c);
end
$$;

-- The first column of the key to which the data of a create gives another value than its id does; null when they agree.
create function concord_internal.contradiction(m concord_internal.models, key text, data jsonb)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  given constant jsonb := concord_internal.key_data(m, key);
  col text;
begin
  foreach col in array m.key_columns::text[] loop
    if data ? col and (data->col = 'null' or concord_internal.reference(data->col) is not null
                       or concord_internal.canonical_key(m, given || jsonb_build_object(col, data->col)) <> key) then
      return col;
    end if;
  end loop;
  return null;
end
$$;

-- Fills in m and key of operations and premises; or sets the refusal.
create function concord_internal.resolve_request(inout r concord_internal.request, models concord_internal.models[])
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  operations concord_internal.operation[] := r.operations;  -- plain variables: an element of a record's field is not
  premises concord_internal.premise[] := r.premises;        -- assigned in place
  o concord_internal.operation;
  p concord_internal.premise;
  m concord_internal.models;
  id jsonb;
  col text;
  part text;
  path text;
begin
  foreach o in array operations loop
    if m.name is distinct from o.model then
      o.m := array_position(r.model_names, o.model);
      m := models[o.m];
    else
      o.m := array_position(r.model_names, o.model);
    end if;
    if o.archives is not null then
      if m.archive_column is null then
        r.refusal := concord_internal.refusal('invalid_request', 'operations[' || o.n || '].type',
          format('%s has no archive_column: concord.track gives a model one', o.model));
        return;
      end if;
      o.fields := array[m.archive_column::text];
      o.data := jsonb_build_object(m.archive_column, case when o.archives then now() end);
    end if;
    if o.condition is not null or not (o.fields <@ m.any_value or m.columns ?& o.fields and strpos(m.columns::text, '"g"') = 0) then
      path := concord_internal.unknown_column(m, o.fields, o.condition);
      if path is not null then
        r.refusal := concord_internal.refusal('invalid_request', 'operations[' || o.n || ']' || path,
          format('%s has no such column that can be written or compared', o.model));
        return;
      end if;
    end if;
    if o.only_changed and m.detail = 'names' then
      r.refusal := concord_internal.refusal('invalid_request', 'onlyChanged',
        format('%s is tracked with detail "names": the log does not hold the values that onlyChanged compares with', o.model));
      return;
    end if;
    operations[o.n + 1] := o;
  end loop;
  foreach p in array premises loop
    if p.model is not null then
      p.m := array_position(r.model_names, p.model);
      m := models[p.m];
      if not concord_internal.may_find(m) then
        r.refusal := concord_internal.refusal('forbidden', 'reads[' || p.n || '].model', 'you may not select rows of this table by their key');
        return;
      end if;
      if not m.columns ?& p.fields then
        r.refusal := (select concord_internal.refusal('invalid_request', format('reads[%s].fields[%s]', p.n, i - 1), format('%s has no column %I', p.model, f))
                        from unnest(p.fields) with ordinality u(f, i) where not m.columns ? f limit 1);
        return;
      end if;
      premises[p.n + 1] := p;
    end if;
  end loop;

  -- Ids and values, in one block: it costs a subtransaction without an id, since nothing is written in it. Only when
  -- something fails is each value tried alone, to name it. A type of the user's, or a domain's CHECK, may raise anything.
  begin
    foreach o in array operations loop
      m := models[o.m];
      part := 'id';
      if o.ref is not null then
        o.key := (operations[o.ref + 1]).key;
      elsif o.id is not null then
        o.key := concord_internal.canonical_key(m, o.id);
      end if;
      if o.type = 'create' and o.data ?| m.key_columns::text[] then
        part := 'data';
        if o.key is null then
          id := concord_internal.id_in_data(m, o.data);
          if id is not null then
            o.key := concord_internal.canonical_key(m, id);
          end if;
        else
          col := concord_internal.contradiction(m, o.key, o.data);
          if col is not null then
            r.refusal := concord_internal.refusal('invalid_request', format('operations[%s].data.%s', o.n, col), 'the id says otherwise: leave it out here or there');
            return;
          end if;
        end if;
      end if;
      operations[o.n + 1] := o;
      if not o.fields <@ m.any_value then
        part := 'data';
        perform concord_internal.try_values(m, o.data, o.refs);
      end if;
      if o.condition is not null then
        part := 'where';
        perform concord_internal.try_values(m, o.condition, false);
      end if;
    end loop;
    o := null;
    foreach p in array premises loop
      if p.m is not null then
        m := models[p.m];
        p.key := concord_internal.canonical_key(m, p.id);
        premises[p.n + 1] := p;
      end if;
    end loop;
  exception
    when transaction_rollback or lock_not_available or insufficient_resources or operator_intervention then
      raise;
    when others then
      r.refusal := concord_internal.refusal('invalid_request', case
          when o.n is null then format('reads[%s].id', p.n)
          when part = 'id' then format('operations[%s].id', o.n)
          else format('operations[%s].%s', o.n, part)
               || coalesce('.' || concord_internal.first_bad_value(m, case part when 'data' then o.data else o.condition end, part = 'data'), '') end, sqlerrm);
  end;
  r.operations := operations;
  r.premises := premises;
end
$$;

create function concord_internal.first_bad_value(m concord_internal.models, data jsonb, with_references boolean)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  field text;
  value jsonb;
begin
  for field, value in select * from jsonb_each(data) loop
    begin
      perform concord_internal.try_values(m, jsonb_build_object(field, value), with_references);
    exception
      when transaction_rollback or lock_not_available or insufficient_resources or operator_intervention then
        raise;
      when others then
        return field;
    end;
  end loop;
  return null;
end
$$;

select concord_internal.open_to('concord_internal.models_named(text[])', 'concord_app');
select concord_internal.open_to('concord_internal.live_model(concord_internal.models)', 'concord_app');
select concord_internal.open_to('concord_internal.record_of(concord_internal.models,text[])', 'concord_app');
select concord_internal.open_to('concord_internal.simple_key(concord_internal.models,jsonb)', 'public');
select concord_internal.open_to('concord_internal.key_object(concord_internal.models,jsonb)', 'public');
select concord_internal.open_to('concord_internal.key_statement(concord_internal.models)', 'public');
select concord_internal.open_to('concord_internal.canonical_key(concord_internal.models,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.canonical_id(concord_internal.models,text)', 'concord_app');
select concord_internal.open_to('concord_internal.try_statement(concord_internal.models,jsonb,boolean)', 'concord_app');
select concord_internal.open_to('concord_internal.try_values(concord_internal.models,jsonb,boolean)', 'concord_app');
select concord_internal.open_to('concord_internal.unknown_column(concord_internal.models,text[],jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.may_find(concord_internal.models)', 'concord_app');
select concord_internal.open_to('concord_internal.id_in_data(concord_internal.models,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.contradiction(concord_internal.models,text,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.resolve_request(concord_internal.request,concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.first_bad_value(concord_internal.models,jsonb,boolean)', 'concord_app');
