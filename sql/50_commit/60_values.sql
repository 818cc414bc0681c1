-- Values as they appear in answers: read with the caller's rights, and the same JSON in every session, so that what the
-- log holds, what the table holds and what is proposed read alike. Columns that the caller may not read appear nowhere.
--
-- Whether two values are the same is not asked of their JSON, in which -0 is 0, '[5:6]={1,2}' is {1,2}, and of a key that
-- json holds twice one is left: it is asked of their images, typed as the column is.
--
-- The statements run under the caller's search_path (see 40_lock), and name their operators and functions in full.
create function concord_internal.readable_fields(m concord_internal.models, fields text[])
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
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
set search_path = pg_catalog, pg_temp
as $$
  select case when fields = '{}' then '''{}''::jsonb' else
    case when bool_or(m.columns->f->>'t' in ('json', 'json[]') or m.columns->f ? 'foreign') then 'concord_internal.as_jsonb' else '' end ||
    '(pg_catalog.concat(''{'', pg_catalog.array_to_string(array[' ||
    string_agg(format('pg_catalog.concat(%L, %s)', to_json(f) || ':', concord_internal.json_expression(format('%s.%I', alias, f), m.columns->f)), ', ')
    || ']::text[], '',''), ''}''))' || case when bool_or(m.columns->f->>'t' in ('json', 'json[]') or m.columns->f ? 'foreign') then '' else '::jsonb' end end
    from unnest(fields) f
$$;

create function concord_internal.values_statement(m concord_internal.models, fields text[], tenant text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return concord_internal.rows_by_key(m, concord_internal.json_object_expression(m, concord_internal.readable_fields(m, fields), 't'), tenant);
end
$$;

-- The row as JSON; null when it is not there, or not for the caller. Without fields it is only asked whether the row is
-- there, and a caller that may not look for it hears that it is not.
create function concord_internal.row_values(m concord_internal.models, row_key text, fields text[], tenant text)
returns jsonb
language plpgsql
stable
set timezone = 'UTC' set datestyle = 'ISO, YMD' set extra_float_digits = 1 set bytea_output = 'hex' set intervalstyle = 'postgres'
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  found jsonb;
begin
  if pg_catalog.cardinality(fields) operator(pg_catalog.=) 0 and not concord_internal.may_find(m) then
    return null;
  end if;
  perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
  execute concord_internal.values_statement(m, fields, tenant) into found using array[row_key];
  perform pg_catalog.set_config('search_path', was_path, true);
  return found;
end
$$;

-- The same of many rows at once, by key: planning a statement takes longer than reading a row.
create function concord_internal.rows_statement(m concord_internal.models, fields text[], tenant text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return concord_internal.rows_by_key(m, format('pg_catalog.jsonb_object_agg(%s, %s)', concord_internal.key_expression(m.key_columns, m.columns, 't'),
    concord_internal.json_object_expression(m, concord_internal.readable_fields(m, fields), 't')), tenant);
end
$$;

create function concord_internal.rows_values(m concord_internal.models, keys text[], fields text[], tenant text)
returns jsonb
language plpgsql
stable
set timezone = 'UTC' set datestyle = 'ISO, YMD' set extra_float_digits = 1 set bytea_output = 'hex' set intervalstyle = 'postgres'
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  found jsonb;
begin
  perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
  execute concord_internal.rows_statement(m, fields, tenant) into found using keys;
  perform pg_catalog.set_config('search_path', was_path, true);
  return coalesce(found, '{}');
end
$$;

create function concord_internal.typed_statement(m concord_internal.models, fields text[], many boolean default false)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return format(case when many then 'select pg_catalog.array_agg(%s) from pg_catalog.jsonb_to_recordset($1) v(%s)'
                     else 'select %s from pg_catalog.jsonb_to_record($1) v(%s)' end,
                concord_internal.json_object_expression(m, fields, 'v'), concord_internal.record_of(m, fields));
end
$$;

-- Proposed values as their columns will have them, as JSON.
create function concord_internal.typed_values(m concord_internal.models, data jsonb)
returns jsonb
language plpgsql
stable
set timezone = 'UTC' set datestyle = 'ISO, YMD' set extra_float_digits = 1 set bytea_output = 'hex' set intervalstyle = 'postgres'
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  fields constant text[] := array(select k from pg_catalog.jsonb_object_keys(data) k);
  typed jsonb;
begin
  if pg_catalog.cardinality(fields) operator(pg_catalog.=) 0 then
    return data;
  end if;
  perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
  execute concord_internal.typed_statement(m, fields) into typed using data;
  perform pg_catalog.set_config('search_path', was_path, true);
  return typed;
end
$$;

-- The same of many, which have these fields, in their order (a set-returning function alone in FROM gives its rows in it).
create function concord_internal.typed_rows(m concord_internal.models, fields text[], data jsonb)
returns jsonb[]
language plpgsql
stable
set timezone = 'UTC' set datestyle = 'ISO, YMD' set extra_float_digits = 1 set bytea_output = 'hex' set intervalstyle = 'postgres'
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  typed jsonb[];
begin
  perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
  execute concord_internal.typed_statement(m, fields, many => true) into typed using data;
  perform pg_catalog.set_config('search_path', was_path, true);
  return typed;
end
$$;

-- A statement over one row t ($1 its key) beside the values v of $2 that columns of the same names would have.
create function concord_internal.beside_statement(m concord_internal.models, fields text[], expression text, tenant text)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return format('select %s from (%s) t, pg_catalog.jsonb_to_record($2) v(%s)', expression,
    concord_internal.rows_by_key(m, (select string_agg(format('t.%I', f), ', ') from unnest(fields) f), tenant),
    concord_internal.record_of(m, fields));
end
$$;

create function concord_internal.unequal_statement(m concord_internal.models, fields text[], tenant text)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if fields = '{}' then
    return concord_internal.rows_by_key(m, '''{}''::text[]', tenant);
  end if;
  return concord_internal.beside_statement(m, fields, 'array[' || (
    select string_agg(format('case when pg_catalog.record_image_ne(row(t.%1$I), row(v.%1$I)) then %1$L end', f), ', ') from unnest(fields) f)
    || ']::text[]', tenant);
end
$$;

-- Those of the fields whose value in the row is not, to the bit, the one that data would give them; in the order given. A
-- field that the caller may not read counts as one, as does a value that is not known yet. Null when the row is not there,
-- or not for the caller. STABLE, as row_values is: asked in one statement, they speak of one moment.
create function concord_internal.unequal_fields(m concord_internal.models, row_key text, data jsonb, fields text[], tenant text)
returns text[]
language plpgsql
stable
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  compared constant text[] := concord_internal.comparable_fields(m, data, fields);
  unequal text[];
begin
  perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
  execute concord_internal.unequal_statement(m, compared, tenant) into unequal using array[row_key], data;
  perform pg_catalog.set_config('search_path', was_path, true);
  return case when unequal is not null then concord_internal.without(fields, concord_internal.without(compared, unequal)) end;
end
$$;

create function concord_internal.comparable_fields(m concord_internal.models, data jsonb, fields text[])
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select f from unnest(concord_internal.readable_fields(m, fields)) f where concord_internal.reference(data->f) is null);
end
$$;

create function concord_internal.without(names text[], others text[])
returns text[]
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select array(select n from unnest(names) with ordinality u(n, i)
                where not exists (select from unnest(others) o where o = n) order by i)
$$;

-- The operator that says whether two values of a type are equal, in full; null where the type has no equality of its own: no
-- default operator class for btree or hash. Point, box, json, xml and the like, and what is made of them.
create function concord_internal.equality_of(type oid)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  ty pg_type;
begin
  select * into ty from pg_type t where t.oid = type;
  if ty.typtype = 'd' then
    return concord_internal.equality_of(ty.typbasetype);
  elsif ty.typelem <> 0 and ty.typsubscript = 'array_subscript_handler'::regproc then
    return case when concord_internal.equality_of(ty.typelem) is not null then 'operator(pg_catalog.=)' end;
  elsif ty.typtype = 'c' then
    return case when not exists (select from pg_attribute a where a.attrelid = ty.typrelid and a.attnum > 0 and not a.attisdropped
                                    and concord_internal.equality_of(a.atttypid) is null)
                then 'operator(pg_catalog.=)' end;
  elsif ty.typtype in ('e', 'r', 'm') then
    return 'operator(pg_catalog.=)';
  end if;
  return (
    select format('operator(%I.%s)', n.nspname, o.oprname)
      from pg_opclass c
      join pg_am am on am.oid = c.opcmethod and am.amname in ('btree', 'hash')
      join pg_amop a on a.amopfamily = c.opcfamily and a.amoplefttype = c.opcintype and a.amoprighttype = c.opcintype
                    and a.amopstrategy = case am.amname when 'btree' then 3 else 1 end
      join pg_operator o on o.oid = a.amopopr
      join pg_namespace n on n.oid = o.oprnamespace
     where c.opcdefault
       and (c.opcintype = type
            or exists (select from pg_cast x where x.castsource = type and x.casttarget = c.opcintype and x.castmethod = 'b' and x.castcontext = 'i'))
     order by c.opcintype = type desc, (select p.typispreferred from pg_type p where p.oid = c.opcintype) desc, am.amname limit 1);
end
$$;

-- Are two json the same, as jsonb? One that jsonb refuses is no value that a request can name.
create function concord_internal.same_json(one json, other json)
returns boolean
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return one::jsonb is not distinct from other::jsonb;
exception when data_exception or program_limit_exceeded then
  return one::text = other::text;
end
$$;

create function concord_internal.match_expression(m concord_internal.models, field text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  type constant oid := (select a.atttypid from pg_attribute a where a.attrelid = m.rel and a.attname = field and not a.attisdropped);
  equality constant text := concord_internal.equality_of(type);
begin
  return case when type = 'json'::regtype then format('concord_internal.same_json(t.%1$I, v.%1$I)', field)
              when equality is null then format('pg_catalog.record_image_eq(row(t.%1$I), row(v.%1$I))', field)
              else format('coalesce(t.%1$I %2$s v.%1$I, pg_catalog.num_nulls(t.%1$I, v.%1$I) operator(pg_catalog.=) 2)', field, equality) end;
end
$$;

create function concord_internal.match_statement(m concord_internal.models, fields text[], tenant text)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return concord_internal.beside_statement(m, fields,
    (select string_agg(concord_internal.match_expression(m, f), ' and ') from unnest(fields) f), tenant);
end
$$;

-- "where": does the row match, null matching null? By the equality of each type; by image where it has none.
-- `statement` is match_statement's, which costs much more than running it.
create function concord_internal.row_matches(statement text, row_key text, condition jsonb)
returns boolean
language plpgsql
as $$
declare
  was_path constant text := pg_catalog.current_setting('search_path');
  matches boolean;
begin
  perform pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
  execute statement into matches using array[row_key], condition;
  perform pg_catalog.set_config('search_path', was_path, true);
  return coalesce(matches, false);
end
$$;

select concord_internal.open_to('concord_internal.readable_fields(concord_internal.models,text[])', 'concord_app');
select concord_internal.open_to('concord_internal.json_object_expression(concord_internal.models,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.values_statement(concord_internal.models,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.row_values(concord_internal.models,text,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.typed_statement(concord_internal.models,text[],boolean)', 'concord_app');
select concord_internal.open_to('concord_internal.rows_statement(concord_internal.models,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.rows_values(concord_internal.models,text[],text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.typed_values(concord_internal.models,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.typed_rows(concord_internal.models,text[],jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.beside_statement(concord_internal.models,text[],text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.unequal_statement(concord_internal.models,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.unequal_fields(concord_internal.models,text,jsonb,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.comparable_fields(concord_internal.models,jsonb,text[])', 'concord_app');
select concord_internal.open_to('concord_internal.without(text[],text[])', 'concord_app');
select concord_internal.open_to('concord_internal.equality_of(oid)', 'concord_app');
select concord_internal.open_to('concord_internal.same_json(json,json)', 'concord_app');
select concord_internal.open_to('concord_internal.match_expression(concord_internal.models,text)', 'concord_app');
select concord_internal.open_to('concord_internal.match_statement(concord_internal.models,text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.row_matches(text,text,jsonb)', 'concord_app');
