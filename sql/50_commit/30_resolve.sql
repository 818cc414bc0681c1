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
as $$
begin
  if cardinality(fields) = 1 then
    return quote_ident(fields[1]) || ' ' || (m.columns->fields[1]->>'t');
  end if;
  return (select string_agg(format('%I %s', f, m.columns->f->>'t'), ', ') from unnest(fields) f);
end
$$;

-- Ids as the table has them: typed by the key's input function, and back to canonical text. Raises what Postgres raises.
create function concord_internal.canonical_key(m concord_internal.models, id jsonb)
returns text
language plpgsql
stable
as $$
declare
  key text;
  object jsonb;
begin
  if cardinality(m.key_columns) = 1 and jsonb_typeof(id) <> 'object' then
    case m.columns->(m.key_columns[1]::text)->>'t'
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
  doubtful constant text[] := array(
    select e.key from jsonb_each(data) e
     where e.value <> 'null' and m.columns->e.key->>'t' not in ('text', 'jsonb', 'json')
       and not (jsonb_typeof(e.value) = 'object' and e.value ? '$operation'));
begin
  if doubtful <> '{}' then
    execute format('select %s from jsonb_to_record($1) v(%s)',
                   (select string_agg(format('v.%I', f), ', ') from unnest(doubtful) f), concord_internal.record_of(m, doubtful))
      using data;
  end if;
end
$$;

-- Names of an operation or premise that are no columns: '.path' or null.
create function concord_internal.unknown_column(m concord_internal.models, fields text[], condition jsonb)
returns text
language plpgsql
stable
as $$
begin
  return coalesce((select '.data.' || f from unnest(fields) f where m.columns->f is null or m.columns->f->>'g' <> '' limit 1),
                  (select '.where.' || k from jsonb_object_keys(condition) k where not m.columns ? k limit 1));
end
$$;

-- Fills in m and key of operations and premises; or sets the refusal.
create function concord_internal.resolve_request(inout r concord_internal.request, models concord_internal.models[])
language plpgsql
stable
as $$
declare
  operations concord_internal.operation[] := r.operations;  -- plain variables: an element of a record's field is not
  premises concord_internal.premise[] := r.premises;        -- assigned in place
  o concord_internal.operation;
  p concord_internal.premise;
  m concord_internal.models;
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
      if not has_any_column_privilege(m.rel, 'select') then
        r.refusal := concord_internal.refusal('forbidden', 'reads[' || p.n || '].model', 'you may not select from this table');
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
  -- something fails is each value tried alone, to name it.
  begin
    foreach o in array operations loop
      m := models[o.m];
      part := 'id';
      if o.ref is not null then
        o.key := (operations[o.ref + 1]).key;
      elsif o.id is not null then
        o.key := concord_internal.canonical_key(m, o.id);
      end if;
      operations[o.n + 1] := o;
      if not o.fields <@ m.any_value then
        part := 'data';
        perform concord_internal.try_values(m, o.data);
      end if;
      if o.condition is not null then
        part := 'where';
        perform concord_internal.try_values(m, o.condition);
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
  exception when data_exception or integrity_constraint_violation or undefined_object or undefined_function or undefined_table
              or invalid_parameter_value or numeric_value_out_of_range then
    r.refusal := concord_internal.refusal('invalid_request', case
        when o.n is null then format('reads[%s].id', p.n)
        when part = 'id' then format('operations[%s].id', o.n)
        else format('operations[%s].%s', o.n, part)
             || coalesce('.' || concord_internal.first_bad_value(m, case part when 'data' then o.data else o.condition end), '') end, sqlerrm);
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

select concord_internal.open_to('concord_internal.models_named(text[])', 'concord_app');
select concord_internal.open_to('concord_internal.live_model(concord_internal.models)', 'concord_app');
select concord_internal.open_to('concord_internal.record_of(concord_internal.models,text[])', 'concord_app');
select concord_internal.open_to('concord_internal.canonical_key(concord_internal.models,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.try_values(concord_internal.models,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.unknown_column(concord_internal.models,text[],jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.resolve_request(concord_internal.request,concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.first_bad_value(concord_internal.models,jsonb)', 'concord_app');
