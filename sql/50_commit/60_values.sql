-- Values as they appear in answers: read with the caller's rights, and the same JSON in every session, so that what the
-- log holds, what the table holds and what is proposed can be compared as text. Columns that the caller may not read
-- appear nowhere.
create function concord_internal.readable_fields(m concord_internal.models, fields text[])
returns text[]
language sql
stable
as $$
  select coalesce(array_agg(f order by (m.columns->f->>'n')::integer), '{}')
    from unnest(fields) f
    join pg_attribute a on a.attrelid = m.rel and a.attname = f and not a.attisdropped  -- still there
   where m.columns ? f and has_column_privilege(m.rel, a.attnum, 'select')
$$;

create function concord_internal.json_object_expression(m concord_internal.models, fields text[], alias text)
returns text
language sql
immutable
as $$
  select case when fields = '{}' then '''{}''::jsonb' else
    '(''{'' || concat_ws('','', variadic array[' ||
    string_agg(format('%L || %s', to_json(f) || ':', concord_internal.json_expression(format('%s.%I', alias, f), m.columns->f)), ', ')
    || ']) || ''}'')::jsonb' end
    from unnest(fields) f
$$;

-- The row as JSON; null when it is not there, or not for the caller.
create function concord_internal.row_values(m concord_internal.models, row_key text, fields text[], tenant text)
returns jsonb
language plpgsql
stable
set timezone = 'UTC' set datestyle = 'ISO, YMD' set extra_float_digits = 1 set bytea_output = 'hex' set intervalstyle = 'postgres'
as $$
declare
  found jsonb;
begin
  execute concord_internal.rows_by_key(m, concord_internal.json_object_expression(m, concord_internal.readable_fields(m, fields), 't'), tenant)
    into found using array[row_key];
  return found;
end
$$;

-- Proposed values as their columns will have them.
create function concord_internal.typed_values(m concord_internal.models, data jsonb)
returns jsonb
language plpgsql
stable
set timezone = 'UTC' set datestyle = 'ISO, YMD' set extra_float_digits = 1 set bytea_output = 'hex' set intervalstyle = 'postgres'
as $$
declare
  fields constant text[] := array(select k from jsonb_object_keys(data) k);
  typed jsonb;
begin
  if fields = '{}' then
    return data;
  end if;
  execute format('select %s from jsonb_to_record($1) v(%s)', concord_internal.json_object_expression(m, fields, 'v'),
                 concord_internal.record_of(m, fields)) into typed using data;
  return typed;
end
$$;

create function concord_internal.unequal_fields(m concord_internal.models, row_key text, data jsonb, fields text[], tenant text)
returns text[]
language plpgsql
as $$
declare
  cv constant jsonb := concord_internal.row_values(m, row_key, fields, tenant);
  pv constant jsonb := concord_internal.typed_values(m, data);
begin
  return array(select f from unnest(fields) f where not cv ? f or (cv->f)::text <> (pv->f)::text);
end
$$;

-- "where": does the row match, null matching null?
create function concord_internal.row_matches(m concord_internal.models, row_key text, condition jsonb, tenant text)
returns boolean
language plpgsql
as $$
declare
  fields constant text[] := array(select k from jsonb_object_keys(condition) k);
  matches boolean;
begin
  if fields = '{}' then
    return true;
  end if;
  execute format('select coalesce(bool_and(%s), false) from (%s) t, jsonb_to_record($2) v(%s)',
      (select string_agg(case when m.columns->f->>'t' = 'json' then format('t.%1$I::jsonb is not distinct from v.%1$I::jsonb', f)
                              when m.columns->f->>'t' in ('xml', 'point', 'line', 'lseg', 'box', 'path', 'polygon', 'circle')
                              then format('t.%1$I::text is not distinct from v.%1$I::text', f)
                              else format('t.%1$I is not distinct from v.%1$I', f) end, ' and ') from unnest(fields) f),
      concord_internal.rows_by_key(m, (select string_agg(format('t.%I', f), ', ') from unnest(fields) f), tenant),
      concord_internal.record_of(m, fields))
    into matches using array[row_key], condition;
  return matches;
end
$$;

select concord_internal.open_to('concord_internal.readable_fields(concord_internal.models,text[])', 'concord_app');
select concord_internal.open_to('concord_internal.json_object_expression(concord_internal.models,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.row_values(concord_internal.models,text,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.typed_values(concord_internal.models,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.unequal_fields(concord_internal.models,text,jsonb,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.row_matches(concord_internal.models,text,jsonb,text)', 'concord_app');
