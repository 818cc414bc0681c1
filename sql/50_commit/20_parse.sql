-- 1 parse: the shape of a request. Nothing here looks at a table. What is wrong is a refusal with its path; what is
-- right becomes operations and premises, in request order, with the top-level defaults filled in.
create type concord_internal.operation as (
  n integer,                  -- position in the request, from 0
  type text,                  -- update, create, delete
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
  transaction_id jsonb,
  outcome text,               -- applied, held, unchanged
  conflict jsonb              -- the notification of a stale one
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

-- The position named by {"$operation": n}; null when this is no such reference.
create function concord_internal.reference(value jsonb)
returns integer
language plpgsql
immutable
as $$
begin
  if jsonb_typeof(value) = 'object' and jsonb_typeof(value->'$operation') = 'number' and value - '$operation' = '{}'
     and value->>'$operation' ~ '^\d{1,5}$' then
    return (value->>'$operation')::integer;
  end if;
  return null;
end
$$;

create function concord_internal.parse_request(given jsonb)
returns concord_internal.request
language plpgsql
stable
as $$
declare
  modes constant text[] := array['reject', 'overwrite', 'notify'];
  r concord_internal.request;
  o concord_internal.operation;
  p concord_internal.premise;
  item jsonb;
  part jsonb;
  path text := '';
  problem text;
  position integer := 0;
  default_token text;
  default_mode text;
  models text[] := '{}';
  operations concord_internal.operation[] := '{}';  -- plain variables: an element of a record's field is not assigned in place
  premises concord_internal.premise[] := '{}';
begin
  <<shape>>
  begin
    if given is null or jsonb_typeof(given) <> 'object' then
      problem := 'a request is a JSON object'; exit shape;
    end if;
    if given - array['operations', 'reads', 'readAt', 'onStale', 'onlyChanged', 'returning', 'label', 'idempotencyKey'] <> '{}' then
      path := (select min(k) from jsonb_object_keys(given - array['operations', 'reads', 'readAt', 'onStale', 'onlyChanged', 'returning', 'label', 'idempotencyKey']) k);
      problem := 'unknown key'; exit shape;
    end if;
    foreach path in array array['readAt', 'label', 'idempotencyKey', 'onStale'] loop
      if jsonb_typeof(given->path) not in ('string', 'null') then
        problem := 'a string'; exit shape;
      end if;
    end loop;
    foreach path in array array['onlyChanged', 'returning'] loop
      if jsonb_typeof(given->path) not in ('boolean', 'null') then
        problem := 'true or false'; exit shape;
      end if;
    end loop;
    path := 'onStale';
    default_mode := given->>'onStale';
    if default_mode <> all (modes) then
      problem := 'one of reject, overwrite, notify'; exit shape;
    end if;
    path := 'idempotencyKey';
    r.idempotency_key := given->>'idempotencyKey';
    if length(r.idempotency_key) not between 1 and 255 then
      problem := 'one to 255 characters'; exit shape;
    end if;
    path := 'label';
    r.label := given->>'label';
    if length(r.label) > 1000 then
      problem := 'at most 1000 characters'; exit shape;
    end if;
    default_token := given->>'readAt';
    r.want_rows := coalesce((given->>'returning')::boolean, false);
    r.only_changed := coalesce((given->>'onlyChanged')::boolean, false);

    path := 'operations';
    if jsonb_typeof(given->'operations') is distinct from 'array' or jsonb_array_length(given->'operations') not between 1 and 10000 then
      problem := 'a list of 1 to 10,000 operations'; exit shape;
    end if;
    for item in select e from jsonb_array_elements(given->'operations') e loop
      o := null;
      o.n := position;
      path := 'operations[' || position || ']';
      if jsonb_typeof(item) <> 'object' then
        problem := 'an object'; exit shape;
      end if;
      o.type := item->>'type';
      if o.type = 'update' then part := item - array['type', 'model', 'id', 'data', 'readAt', 'onStale', 'where', 'transactionId'];
      elsif o.type = 'create' then part := item - array['type', 'model', 'id', 'data', 'transactionId', 'readAt', 'onStale'];
      elsif o.type = 'delete' then part := item - array['type', 'model', 'id', 'readAt', 'onStale', 'where', 'transactionId'];
      else path := path || '.type'; problem := 'one of update, create, delete'; exit shape;
      end if;
      if part <> '{}' then
        path := path || '.' || (select min(k) from jsonb_object_keys(part) k); problem := 'unknown key'; exit shape;
      end if;
      o.model := item->>'model';
      if jsonb_typeof(item->'model') is distinct from 'string' then
        path := path || '.model'; problem := 'the name of a model'; exit shape;
      end if;
      o.m := array_position(models, o.model);
      if o.m is null then
        models := models || o.model;
        o.m := cardinality(models);
      end if;

      o.id := nullif(item->'id', 'null');
      if o.id is not null then
        o.ref := concord_internal.reference(o.id);
        if jsonb_typeof(o.id) not in ('string', 'number', 'object') then
          path := path || '.id'; problem := 'a string, a number, or an object of key columns'; exit shape;
        elsif o.ref >= position or (o.ref is not null and (o.type = 'create' or (operations[o.ref + 1]).model <> o.model)) then
          path := path || '.id'; problem := '$operation names an earlier operation on the same model'; exit shape;
        end if;
      elsif o.type <> 'create' then
        path := path || '.id'; problem := 'which row'; exit shape;
      end if;

      if o.type <> 'delete' then
        o.data := coalesce(item->'data', case when o.type = 'create' then '{}'::jsonb end);
        if jsonb_typeof(o.data) is distinct from 'object' or (o.type = 'update' and o.data = '{}') then
          path := path || '.data'; problem := 'an object of columns and values, at least one for an update'; exit shape;
        end if;
        o.fields := array(select k from jsonb_object_keys(o.data) k);
        o.refs := false;
        if strpos(o.data::text, '"$operation"') > 0 then
          for part, problem in select e.value, e.key from jsonb_each(o.data) e where jsonb_typeof(e.value) = 'object' and e.value ? '$operation' loop
            path := path || '.data.' || problem;
            problem := '$operation names an earlier operation that creates or names a row';
            if coalesce(concord_internal.reference(part), position) >= position then
              exit shape;
            end if;
            path := 'operations[' || position || ']'; problem := null; o.refs := true;
          end loop;
        end if;
      end if;

      if jsonb_typeof(item->'readAt') not in ('string', 'null') then
        path := path || '.readAt'; problem := 'a token is a string'; exit shape;
      end if;
      o.token := coalesce(item->>'readAt', default_token);
      o.mode := coalesce(item->>'onStale', default_mode);
      if jsonb_typeof(item->'onStale') not in ('string', 'null') or o.mode <> all (modes) then
        path := path || '.onStale'; problem := 'one of reject, overwrite, notify'; exit shape;
      end if;
      if o.type = 'create' then  -- nothing to be stale: an id that is there is already_exists whatever the token
        o.token := null;
      end if;
      o.condition := nullif(item->'where', 'null');
      if jsonb_typeof(o.condition) <> 'object' then
        path := path || '.where'; problem := 'an object of columns and values'; exit shape;
      end if;
      o.transaction_id := nullif(item->'transactionId', 'null');
      if jsonb_typeof(o.transaction_id) <> 'string' then
        path := path || '.transactionId'; problem := 'a string'; exit shape;
      end if;
      o.only_changed := r.only_changed and o.type = 'update';
      operations := operations || o;
      position := position + 1;
    end loop;

    path := 'reads';
    if jsonb_typeof(given->'reads') not in ('array', 'null') then
      problem := 'a list of at most 500 premises'; exit shape;
    end if;
    if jsonb_typeof(given->'reads') = 'array' then
      if jsonb_array_length(given->'reads') > 500 then
        problem := 'a list of at most 500 premises'; exit shape;
      end if;
      position := 0;
      for item in select e from jsonb_array_elements(given->'reads') e loop
        p := null;
        p.n := position;
        path := 'reads[' || position || ']';
        if jsonb_typeof(item) <> 'object' then
          problem := 'an object'; exit shape;
        end if;
        part := item - case when item ? 'group' then array['group', 'readAt', 'onStale']
                            else array['model', 'id', 'fields', 'exists', 'readAt', 'onStale'] end;
        if part <> '{}' then
          path := path || '.' || (select min(k) from jsonb_object_keys(part) k); problem := 'unknown key'; exit shape;
        end if;
        if item ? 'group' then
          p.grp := item->>'group';
          if jsonb_typeof(item->'group') <> 'string' or p.grp !~ '^[^:]+:.' then
            path := path || '.group'; problem := 'a group is written kind:id'; exit shape;
          end if;
        else
          p.model := item->>'model';
          p.id := nullif(item->'id', 'null');
          p.absent := item->'exists' = 'false';
          if jsonb_typeof(item->'model') is distinct from 'string' then
            path := path || '.model'; problem := 'the name of a model'; exit shape;
          elsif coalesce(jsonb_typeof(p.id), '') not in ('string', 'number', 'object') then
            path := path || '.id'; problem := 'a string, a number, or an object of key columns'; exit shape;
          elsif jsonb_typeof(item->'exists') not in ('boolean', 'null') then
            path := path || '.exists'; problem := 'true or false'; exit shape;
          elsif jsonb_typeof(item->'fields') not in ('array', 'null') or (p.absent and item ? 'fields')
                or jsonb_path_exists(item, 'strict $.fields[*] ? (@.type() != "string")', silent => true) or item->'fields' = '[]' then
            path := path || '.fields'; problem := 'a list of column names, where the row is expected to exist'; exit shape;
          end if;
          if jsonb_typeof(item->'fields') = 'array' then
            p.fields := array(select f from jsonb_array_elements_text(item->'fields') f);
          end if;
          p.absent := coalesce(p.absent, false);
          p.m := array_position(models, p.model);
          if p.m is null then
            models := models || p.model;
            p.m := cardinality(models);
          end if;
        end if;
        if jsonb_typeof(item->'readAt') not in ('string', 'null') then
          path := path || '.readAt'; problem := 'a token is a string'; exit shape;
        end if;
        p.token := coalesce(item->>'readAt', default_token);
        if p.token is null then
          path := path || '.readAt'; problem := 'a premise rests on a token: give readAt here or at the top'; exit shape;
        end if;
        p.mode := coalesce(item->>'onStale', default_mode);
        if jsonb_typeof(item->'onStale') not in ('string', 'null') or p.mode <> all (modes) then
          path := path || '.onStale'; problem := 'one of reject, overwrite, notify'; exit shape;
        end if;
        premises := premises || p;
        position := position + 1;
      end loop;
    end if;
    r.model_names := models;
    r.operations := operations;
    r.premises := premises;
    return r;
  end;
  r.refusal := concord_internal.refusal('invalid_request', nullif(path, ''), coalesce(nullif(path, '') || ': ', '') || problem);
  return r;
end
$$;

select concord_internal.open_to('concord_internal.reference(jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.parse_request(jsonb)', 'concord_app');
