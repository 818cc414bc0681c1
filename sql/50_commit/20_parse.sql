-- 1 parse: the shape of a request. Nothing here looks at a table. What is wrong is a refusal with its path; what is
-- right becomes operations and premises, in request order, with the top-level defaults filled in.
--
-- A note on style for the whole room: PL/pgSQL sets each expression up anew in each transaction, 1 to 2 µs apiece, and
-- most commits hold one operation. So the path of such a commit has few statements, each of which does much.
--
-- And on search_path: an operator or function of somebody else's, in a schema of the caller's path, is taken before
-- Postgres's own where its argument types fit more exactly. So a function that runs nothing of the user's pins the path. One
-- that does only executes, under the caller's path, what a pinned one has written, with every name in full.
create type concord_internal.operation as (
  n integer,                  -- position in the request, from 0
  type text,                  -- update, create, delete
  archives boolean,           -- an update that archive (true) or unarchive (false) stands for
  model text,
  m integer,                  -- which of the request's models
  id jsonb,                   -- as given; null: to be produced by a default
  key text,                   -- the canonical id
  ref integer,                -- the operation whose id is meant
  data jsonb,
  fields text[],              -- names of data, in order
  refs boolean,               -- some value of data is {"$operation": n}
  token text,
  mode text,                  -- reject, overwrite, notify; null: the model's own for this kind of principal
  condition jsonb,            -- "where"
  only_changed boolean,
  transaction_id text,
  outcome text,               -- applied, held, unchanged
  seq bigint                  -- of a stale one: the newest delta that it conflicts with
);

create type concord_internal.premise as (
  n integer, model text, m integer, id jsonb, key text, fields text[], absent boolean, grp text, token text, mode text
);

create type concord_internal.request as (
  refusal jsonb,
  operations concord_internal.operation[],
  premises concord_internal.premise[],
  model_names text[],
  idempotency_key text, label text, want_rows boolean, only_changed boolean
);

-- The position named by {"$operation": n}, -1 when there can be none of that number. Anything else, a string of that name or
-- an object that holds more or something else, is data: null.
create function concord_internal.reference(value jsonb)
returns integer
language sql
immutable
return case when jsonb_typeof(value) = 'object' and jsonb_typeof(value->'$operation') = 'number' and value - '$operation' = '{}'
            then case when value->>'$operation' ~ '^\d{1,5}$' then (value->>'$operation')::integer else -1 end end;

-- Only called when something is wrong; a subquery inside the checks themselves would make them slow.
create function concord_internal.first_key(object jsonb)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select min(k) from jsonb_object_keys(object) k);
end
$$;

-- The first value of data that is a reference to no earlier operation.
create function concord_internal.bad_reference(data jsonb, n integer)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select min(d.key) from jsonb_each(data) d where concord_internal.reference(d.value) not between 0 and n - 1);
end
$$;

create function concord_internal.has_reference(data jsonb)
returns boolean
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from jsonb_each(data) d where concord_internal.reference(d.value) is not null);
end
$$;

-- What is wrong with the parts that stand at the top: 'path|what it should be', or null.
create function concord_internal.top_problem(given jsonb)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  known constant text[] := array['operations', 'reads', 'readAt', 'onStale', 'onlyChanged', 'returning', 'label', 'idempotencyKey'];
begin
  return case
    when jsonb_typeof(given) is distinct from 'object' then '|a request is a JSON object'
    when given - known <> '{}' then concord_internal.first_key(given - known) || '|unknown key'
    when jsonb_typeof(given->'readAt') not in ('string', 'null') then 'readAt|a token is a string'
    when jsonb_typeof(given->'onStale') not in ('string', 'null') or given->>'onStale' not in ('reject', 'overwrite', 'notify')
      then 'onStale|one of reject, overwrite, notify'
    when jsonb_typeof(given->'onlyChanged') not in ('boolean', 'null') then 'onlyChanged|true or false'
    when jsonb_typeof(given->'returning') not in ('boolean', 'null') then 'returning|true or false'
    when jsonb_typeof(given->'label') not in ('string', 'null') or length(given->>'label') > 1000
      then 'label|a string of at most 1000 characters'
    when jsonb_typeof(given->'idempotencyKey') not in ('string', 'null') or length(given->>'idempotencyKey') not between 1 and 255
      then 'idempotencyKey|a string of one to 255 characters'
    when jsonb_typeof(given->'operations') is distinct from 'array' then 'operations|a list of 1 to 10,000 operations'
    when jsonb_array_length(given->'operations') not between 1 and 10000 then 'operations|a list of 1 to 10,000 operations'
    when jsonb_typeof(given->'reads') not in ('array', 'null') then 'reads|a list of at most 500 premises'
    when jsonb_typeof(given->'reads') = 'array' and jsonb_array_length(given->'reads') > 500 then 'reads|a list of at most 500 premises'
  end;
end
$$;

-- What is wrong with one operation: '.path|what it should be', or null.
create function concord_internal.operation_problem(e jsonb, n integer, given jsonb)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  ref constant integer := concord_internal.reference(e->'id');
begin
  return case
    when jsonb_typeof(e) <> 'object' then '|an object'
    when e->'type' not in ('"update"', '"create"', '"delete"', '"archive"', '"unarchive"') or e->'type' is null
      then '.type|one of update, create, delete, archive, unarchive'
    when e - array['type', 'model', 'id', 'data', 'readAt', 'onStale', 'where', 'transactionId'] <> '{}'
      then '.' || concord_internal.first_key(e - array['type', 'model', 'id', 'data', 'readAt', 'onStale', 'where', 'transactionId']) || '|unknown key'
    when e ? 'data' and e->>'type' in ('delete', 'archive', 'unarchive') then '.data|unknown key'
    when e ? 'where' and e->>'type' = 'create' then '.where|unknown key'
    when jsonb_typeof(e->'model') is distinct from 'string' then '.model|the name of a model'
    when jsonb_typeof(e->'id') not in ('string', 'number', 'object', 'null') then '.id|a string, a number, or an object of key columns'
    when coalesce(e->'id', 'null') = 'null' and e->>'type' <> 'create' then '.id|which row'
    when ref not between 0 and n - 1 or (ref is not null and (e->>'type' = 'create' or given->'operations'->ref->'model' <> e->'model'))
      then '.id|$operation names an earlier operation on the same model'
    when e->>'type' in ('update', 'create') and jsonb_typeof(e->'data') not in ('object', 'null') then '.data|an object of columns and values'
    when e->>'type' = 'update' and coalesce(e->'data', '{}') in ('{}', 'null') then '.data|an object of columns and values, at least one'
    when strpos(e::text, '$operation') > 0 and jsonb_typeof(e->'data') = 'object'
         and concord_internal.bad_reference(e->'data', n) is not null
      then '.data.' || concord_internal.bad_reference(e->'data', n) || '|$operation names an earlier operation'
    when jsonb_typeof(e->'readAt') not in ('string', 'null') then '.readAt|a token is a string'
    when jsonb_typeof(e->'onStale') not in ('string', 'null') or e->>'onStale' not in ('reject', 'overwrite', 'notify')
      then '.onStale|one of reject, overwrite, notify'
    when jsonb_typeof(e->'where') not in ('object', 'null') then '.where|an object of columns and values'
    when jsonb_typeof(e->'transactionId') not in ('string', 'null') then '.transactionId|a string'
  end;
end
$$;

create function concord_internal.premise_problem(e jsonb, given jsonb)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  known constant text[] := case when e ? 'group' then array['group', 'readAt', 'onStale']
                                else array['model', 'id', 'fields', 'exists', 'readAt', 'onStale'] end;
begin
  return case
    when jsonb_typeof(e) <> 'object' then '|an object'
    when e - known <> '{}' then '.' || concord_internal.first_key(e - known) || '|unknown key'
    when e ? 'group' and (jsonb_typeof(e->'group') <> 'string' or e->>'group' !~ '^[^:]+:.') then '.group|a group is written kind:id'
    when not e ? 'group' and jsonb_typeof(e->'model') is distinct from 'string' then '.model|the name of a model'
    when not e ? 'group' and coalesce(jsonb_typeof(e->'id'), 'null') not in ('string', 'number', 'object')
      then '.id|a string, a number, or an object of key columns'
    when jsonb_typeof(e->'exists') not in ('boolean', 'null') then '.exists|true or false'
    when jsonb_typeof(e->'fields') not in ('array', 'null') or e->'fields' = '[]' or (e->'exists' = 'false' and e ? 'fields')
         or jsonb_path_exists(e, '$.fields[*] ? (@.type() != "string")') then '.fields|a list of column names, where the row is expected to exist'
    when jsonb_typeof(e->'readAt') not in ('string', 'null') then '.readAt|a token is a string'
    when coalesce(e->>'readAt', given->>'readAt') is null then '.readAt|a premise rests on a token: give readAt here or at the top'
    when jsonb_typeof(e->'onStale') not in ('string', 'null') or e->>'onStale' not in ('reject', 'overwrite', 'notify')
      then '.onStale|one of reject, overwrite, notify'
  end;
end
$$;

create function concord_internal.parse_request(given jsonb)
returns concord_internal.request
language plpgsql
stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  r concord_internal.request;
  problem text := concord_internal.top_problem(given);
begin
  if problem is null then
    select array_agg(row(
             u.i - 1, case when u.e->>'type' in ('archive', 'unarchive') then 'update' else u.e->>'type' end,
             case u.e->>'type' when 'archive' then true when 'unarchive' then false end, u.e->>'model', null, nullif(u.e->'id', 'null'), null, concord_internal.reference(u.e->'id'),
             case when u.e->>'type' <> 'delete' then coalesce(nullif(u.e->'data', 'null'), '{}') end,
             case when jsonb_typeof(u.e->'data') = 'object' then array(select jsonb_object_keys(u.e->'data'))
                  when u.e->>'type' = 'create' then '{}'::text[] end,
             case when strpos(u.e::text, '$operation') > 0 and jsonb_typeof(u.e->'data') = 'object'
                  then concord_internal.has_reference(u.e->'data') else false end,
             coalesce(u.e->>'readAt', given->>'readAt'),
             coalesce(u.e->>'onStale', given->>'onStale'), nullif(u.e->'where', 'null'),
             given->'onlyChanged' = 'true' and u.e->>'type' = 'update', u.e->>'transactionId', null, null)::concord_internal.operation order by u.i),
           (array_agg(format('operations[%s]%s', u.i - 1, u.problem) order by u.i) filter (where u.problem is not null))[1],
           array_agg(distinct u.e->>'model')
      into r.operations, problem, r.model_names
      from (select v.e, v.i, concord_internal.operation_problem(v.e, v.i::integer - 1, given) as problem
              from jsonb_array_elements(given->'operations') with ordinality v(e, i) offset 0) u;
  end if;
  if problem is null and jsonb_typeof(given->'reads') = 'array' then
    select array_agg(row(
             u.i - 1, u.e->>'model', null, u.e->'id', null,
             case when jsonb_typeof(u.e->'fields') = 'array' then array(select jsonb_array_elements_text(u.e->'fields')) end,
             coalesce(u.e->'exists' = 'false', false), u.e->>'group', coalesce(u.e->>'readAt', given->>'readAt'),
             coalesce(u.e->>'onStale', given->>'onStale'))::concord_internal.premise order by u.i),
           (array_agg(format('reads[%s]%s', u.i - 1, u.problem) order by u.i) filter (where u.problem is not null))[1],
           array(select distinct n from unnest(r.model_names || array_agg(u.e->>'model')) n where n is not null)
      into r.premises, problem, r.model_names
      from (select v.e, v.i, concord_internal.premise_problem(v.e, given) as problem
              from jsonb_array_elements(given->'reads') with ordinality v(e, i) offset 0) u;
  end if;
  if problem is not null then
    r.refusal := concord_internal.refusal('invalid_request', nullif(split_part(problem, '|', 1), ''), split_part(problem, '|', 2));
    return r;
  end if;
  r.premises := coalesce(r.premises, '{}');
  r.idempotency_key := given->>'idempotencyKey';
  r.label := given->>'label';
  r.want_rows := given->'returning' = 'true';
  r.only_changed := given->'onlyChanged' = 'true';
  return r;
end
$$;

select concord_internal.open_to('concord_internal.reference(jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.first_key(jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.bad_reference(jsonb,integer)', 'concord_app');
select concord_internal.open_to('concord_internal.has_reference(jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.top_problem(jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.operation_problem(jsonb,integer,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.premise_problem(jsonb,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.parse_request(jsonb)', 'concord_app');
