-- 3 lock, before anything is looked at: what is judged must not change until the transaction ends.
--
-- One list in one order: models by id, keys by bytes, the strongest mode of each first, so that two commits that meet
-- wait instead of deadlocking; then advisory locks in the order of their ids. A row present locked can't change or vanish
-- before we end. A row that was not there when the lock statement began, or was deleted and re-created while it waited,
-- comes back unlocked: so a plain look with a fresh snapshot follows wherever a target is missing, until it finds none.

-- SQL that finds rows of m by canonical keys ($1 text[]), without its end. With a tenant column only the principal's: a
-- row of another tenant is answered as one that is not there, also where no policy says so.
create function concord_internal.rows_by_key(m concord_internal.models, what text, tenant text)
returns text
language plpgsql
immutable
as $$
declare
  key_col constant text := m.key_columns[1];
  wall constant text := case when m.tenant_column is null then '' else format('(%s) = %L and ',
    concord_internal.stable_text(format('t.%I', m.tenant_column), m.columns->(m.tenant_column::text)->>'t'), tenant) end;
begin
  if cardinality(m.key_columns) = 1 then
    return format('select %s from %s t where %st.%I = any ($1::text[]::%s[])', what, m.rel, wall, key_col, m.columns->key_col->>'t');
  end if;
  return format('select %s from %s t where %s(%s) in (select %s from unnest($1) u(k), jsonb_to_record(u.k::jsonb) k(%s))',
    what, m.rel, wall,
    (select string_agg(format('t.%I', c), ', ') from unnest(m.key_columns) c),
    (select string_agg(format('k.%I', c), ', ') from unnest(m.key_columns) c),
    concord_internal.record_of(m, m.key_columns::text[]));
end
$$;

-- Locks rows of one model in key order and returns the keys that were there.
create function concord_internal.lock_rows(m concord_internal.models, keys text[], strength text, tenant text)
returns text[]
language plpgsql
as $$
declare
  key_text constant text := concord_internal.key_expression(m.key_columns, m.columns, 't');
  lock_statement constant text := format('select array_agg(s.k) from (%s order by 1 for %s of t) s',
    concord_internal.rows_by_key(m, format('(%s) collate "C" as k', key_text), tenant), strength);
  locked text[];
  unlocked text[];
begin
  execute lock_statement into locked using keys;
  loop
    exit when cardinality(locked) = cardinality(keys);
    execute format('select array_agg(s.k) from (%s) s where s.k <> all ($2)', concord_internal.rows_by_key(m, format('(%s) as k', key_text), tenant))
      into unlocked using keys, coalesce(locked, '{}');
    exit when unlocked is null;
    execute lock_statement into locked using keys;
  end loop;
  return coalesce(locked, '{}');
end
$$;

-- Locks everything that the request writes or rests on. Returns, model by model, "m key" of each target that exists.
create function concord_internal.lock_request(r concord_internal.request, models concord_internal.models[], tenant text)
returns text[]
language plpgsql
as $$
declare
  target record;
  ids bigint[];
  present text[] := '{}';
  many constant boolean := cardinality(r.operations) + cardinality(r.premises) > concord_internal.most_locks();
  o concord_internal.operation;
begin
  if cardinality(r.operations) = 1 then
    o := r.operations[1];
    if o.type <> 'create' then
      present := array(select o.m || ' ' || k from unnest(concord_internal.lock_rows(models[o.m], array[o.key],
                       case o.type when 'update' then 'no key update' else 'update' end, tenant)) k);
    end if;
  else
    -- Neighbours in the order that want the same strength go in one statement.
    for target in
      with wanted as (
        select (models[u.m]).id as model, u.m, u.key collate "C" as key, bool_or(u.type = 'delete') as strong
          from unnest(r.operations) u where u.type <> 'create' and u.key is not null group by 1, 2, 3),
      runs as (
        select *, row_number() over (order by model, key) - row_number() over (partition by model, strong order by key) as run from wanted)
      select m, strong, array_agg(key order by key) as keys from runs group by model, m, strong, run order by model, min(key)
    loop
      present := present || array(select target.m || ' ' || k from unnest(concord_internal.lock_rows(models[target.m], target.keys,
                                case when target.strong then 'update' else 'no key update' end, tenant)) k);
    end loop;
  end if;

  -- Every commit shares its tenant, and the shared models; a large one takes them alone instead of many keys.
  if many then
    perform pg_advisory_xact_lock(concord_internal.tenant_lock(''));
    perform pg_advisory_xact_lock(concord_internal.tenant_lock(tenant));
    return present;
  end if;
  perform pg_advisory_xact_lock_shared(concord_internal.tenant_lock(''));
  perform pg_advisory_xact_lock_shared(concord_internal.tenant_lock(tenant));
  for target in
    select l.id, bool_or(l.alone) as alone
      from (select concord_internal.row_lock((models[u.m]).id, u.key) as id, true as alone
              from unnest(r.operations) u where u.key is not null
            union all
            select concord_internal.row_lock((models[u.m]).id, u.key), false
              from unnest(r.premises) u where u.key is not null
            union all
            select concord_internal.group_lock(g.tenant, u.grp), true
              from unnest(r.premises) u, (values (tenant), ('')) g(tenant) where u.grp is not null) l
     group by l.id order by l.id
  loop
    if target.alone then
      perform pg_advisory_xact_lock(target.id);
    else
      perform pg_advisory_xact_lock_shared(target.id);
    end if;
  end loop;
  return present;
end
$$;

select concord_internal.open_to('concord_internal.rows_by_key(concord_internal.models,text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.lock_rows(concord_internal.models,text[],text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.lock_request(concord_internal.request,concord_internal.models[],text)', 'concord_app');
