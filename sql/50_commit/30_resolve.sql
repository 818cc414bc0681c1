-- 2 resolve: models, columns, ids and values, still without looking at a row. Definers read concord's tables; everything
-- that runs a user type's input function runs as the caller.

-- The models of these names for a tenant: its own before a shared one. null stays where there is none.
create function concord_internal.models_named(names text[], tenant text)
returns concord_internal.models[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  found concord_internal.models[] := '{}';
  m concord_internal.models;
  wanted text;
begin
  foreach wanted in array names loop
    select * into m from concord_internal.models o
     where o.name = wanted and o.tenant in (models_named.tenant, '') order by o.tenant desc limit 1;
    if m.id is not null and not exists (select from pg_class where oid = m.rel) then
      m := null;
    end if;
    found := found || m;
  end loop;
  return found;
end
$$;

-- The model over the columns as they are now. A column that came, went or was renamed changes nothing here: the trigger's
-- fallback leaves no gap. A retyped one does (values can't be compared across it), as does a partition without triggers.
-- Returns m with live columns, or with id null when it is model_changed.
create function concord_internal.live_model(m concord_internal.models)
returns concord_internal.models
language plpgsql
stable
as $$
declare
  live jsonb;
begin
  if concord_internal.signature(m.rel) <> m.signature then
    live := concord_internal.columns_of(m.rel);
    if concord_internal.retyped(m.columns, live) is not null then
      m.id := null;
    end if;
    m.columns := live;
    m.key_columns := concord_internal.key_columns_of(m.rel);
    if m.key_columns is null then
      m.id := null;
    end if;
  end if;
  if exists (select from pg_class where oid = m.rel and relkind = 'p')
     and exists (select from concord_internal.relations_without_triggers(m.rel)) then
    m.id := null;
  end if;
  return m;
end
$$;

-- "a integer, b text": the columns of a typed record made from a JSON object.
create function concord_internal.record_of(m concord_internal.models, fields text[])
returns text
language sql
immutable
as $$
  select string_agg(format('%I %s', f, m.columns->f->>'t'), ', ') from unnest(fields) f
$$;

-- Ids as the table has them: typed by the key's input function, and back to canonical text. Raises what Postgres raises.
create function concord_internal.canonical_key(m concord_internal.models, id jsonb)
returns text
language plpgsql
stable
as $$
declare
  type text;
  key text;
  object jsonb;
begin
  if cardinality(m.key_columns) = 1 and jsonb_typeof(id) <> 'object' then
    type := m.columns->(m.key_columns[1]::text)->>'t';
    case type
      when 'uuid' then return (id #>> '{}')::uuid::text;
      when 'bigint' then return (id #>> '{}')::bigint::text;
      when 'integer' then return (id #>> '{}')::integer::text;
      when 'text' then
        if jsonb_typeof(id) = 'number' then
          raise invalid_text_representation using message = 'the key is text: give the id as a string';
        end if;
        return id #>> '{}';
      else object := jsonb_build_object(m.key_columns[1], id);
    end case;
  else
    object := case jsonb_typeof(id) when 'string' then (id #>> '{}')::jsonb else id end;
    if jsonb_typeof(object) <> 'object' or not object ?& m.key_columns::text[] or object - m.key_columns::text[] <> '{}' then
      raise invalid_text_representation using message = format('the id is an object of the key''s columns: %s', array_to_string(m.key_columns, ', '));
    end if;
  end if;
  execute format('select %s from jsonb_to_record($1) k(%s)', concord_internal.key_expression(m.key_columns, m.columns, 'k'),
                 concord_internal.record_of(m, m.key_columns::text[])) into key using object;
  if key is null or exists (select from jsonb_each(object) where value = 'null') then
    raise null_value_not_allowed using message = 'a key has no null';
  end if;
  return key;
end
$$;

-- Does every value fit its column? Nothing to ask where the type takes anything; else the input functions are tried.
create function concord_internal.try_values(m concord_internal.models, data jsonb)
returns void
language plpgsql
stable
as $$
declare
  field text;
  value jsonb;
  doubtful text[];
begin
  for field, value in select * from jsonb_each(data) loop
    if value <> 'null' and m.columns->field->>'t' not in ('text', 'jsonb', 'json')
       and not (jsonb_typeof(value) = 'object' and value ? '$operation') then
      doubtful := doubtful || field;
    end if;
  end loop;
  if doubtful is not null then
    execute format('select %s from jsonb_to_record($1) v(%s)',
                   (select string_agg(format('v.%I', f), ', ') from unnest(doubtful) f), concord_internal.record_of(m, doubtful))
      using data;
  end if;
end
$$;

-- Fills in m, key and token problems; or returns the refusal.
create function concord_internal.resolve_request(inout r concord_internal.request, models concord_internal.models[])
language plpgsql
stable
as $$
declare
  o concord_internal.operation;
  p concord_internal.premise;
  m concord_internal.models;
  path text;
  field text;
  i integer;
  operations concord_internal.operation[] := r.operations;
  premises concord_internal.premise[] := r.premises;
begin
  foreach o in array r.operations loop
    m := models[o.m];
    path := 'operations[' || o.n || ']';
    for field in select f from unnest(o.fields) f where not m.columns ? f or m.columns->f->>'g' <> '' limit 1 loop
      r.refusal := concord_internal.refusal('invalid_request', path || '.data.' || field,
        format('%s has no column %I that can be written', o.model, field));
      return;
    end loop;
    for field in select k from jsonb_object_keys(o.condition) k where not m.columns ? k limit 1 loop
      r.refusal := concord_internal.refusal('invalid_request', path || '.where.' || field, format('%s has no column %I', o.model, field));
      return;
    end loop;
    if o.only_changed and m.detail = 'names' then
      r.refusal := concord_internal.refusal('invalid_request', 'onlyChanged',
        format('%s is tracked with detail "names": the log does not hold the values that onlyChanged compares with', o.model));
      return;
    end if;
  end loop;
  foreach p in array r.premises loop
    if p.m is not null then
      m := models[p.m];
      for i in 1 .. coalesce(cardinality(p.fields), 0) loop
        if not m.columns ? p.fields[i] then
          r.refusal := concord_internal.refusal('invalid_request', format('reads[%s].fields[%s]', p.n, i - 1),
            format('%s has no column %I', p.model, p.fields[i]));
          return;
        end if;
      end loop;
    end if;
  end loop;

  -- Ids and values, in one block: the block costs a subtransaction without an id, since nothing is written in it. Only
  -- when something fails is each value tried alone, to name it.
  path := '';
  begin
    for i in 1 .. cardinality(operations) loop
      o := operations[i];
      m := models[o.m];
      if o.ref is not null then
        o.key := (operations[o.ref + 1]).key;
      elsif o.id is not null then
        path := 'operations[' || o.n || '].id';
        o.key := concord_internal.canonical_key(m, o.id);
      end if;
      if o.key is not null then
        operations[i] := o;
      end if;
      if o.data is not null then
        path := 'operations[' || o.n || '].data';
        perform concord_internal.try_values(m, o.data);
      end if;
      if o.condition is not null then
        path := 'operations[' || o.n || '].where';
        perform concord_internal.try_values(m, o.condition);
      end if;
    end loop;
    for i in 1 .. cardinality(premises) loop
      p := premises[i];
      if p.m is not null then
        path := 'reads[' || p.n || '].id';
        p.key := concord_internal.canonical_key(models[p.m], p.id);
        premises[i] := p;
      end if;
    end loop;
  exception when data_exception or integrity_constraint_violation or invalid_text_representation or undefined_object
              or undefined_function or undefined_table or invalid_parameter_value then
    r.refusal := concord_internal.refusal('invalid_request',
      path || coalesce('.' || concord_internal.first_bad_value(m, case when path like '%.data' then o.data when path like '%.where' then o.condition end), ''),
      sqlerrm);
  end;
  r.operations := operations;
  r.premises := premises;
end
$$;

create function concord_internal.first_bad_value(m concord_internal.models, data jsonb)
returns text
language plpgsql
stable
as $$
declare
  field text;
  value jsonb;
begin
  for field, value in select * from jsonb_each(data) loop
    begin
      perform concord_internal.try_values(m, jsonb_build_object(field, value));
    exception when others then
      return field;
    end;
  end loop;
  return null;
end
$$;

select concord_internal.open_to('concord_internal.models_named(text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.live_model(concord_internal.models)', 'concord_app');
select concord_internal.open_to('concord_internal.record_of(concord_internal.models,text[])', 'concord_app');
select concord_internal.open_to('concord_internal.canonical_key(concord_internal.models,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.try_values(concord_internal.models,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.resolve_request(concord_internal.request,concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.first_bad_value(concord_internal.models,jsonb)', 'concord_app');
