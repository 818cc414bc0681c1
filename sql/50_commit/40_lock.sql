-- 3 lock, before anything is looked at: what is judged must not change until the transaction ends.
--
-- One list in one order: models by id, keys by bytes, the strongest mode of each first, so that two commits that meet
-- wait instead of deadlocking; then advisory locks in the order of their ids. A row present locked can't change or vanish
-- before we end. A row that was not there when the lock statement began, or was deleted and re-created while it waited,
-- comes back unlocked: so a plain look with a fresh snapshot follows wherever a target is missing, until it finds none.

-- A commit runs under a search_path of Concord's own, where nobody can put an operator that fits a little better than
-- Postgres's own. What touches the user's tables runs under the caller's: their triggers, and functions in their policies,
-- find what they find in any statement of the caller. run_commit notes it; called by hand, a helper stays where it is.
-- Texts that run there name their operators and functions in full.
create function concord_internal.callers_path()
returns text
language plpgsql
stable
as $$
begin
  return case when pg_catalog.current_setting('search_path') operator(pg_catalog.<>) 'pg_catalog, pg_temp' then pg_catalog.current_setting('search_path')
              when pg_catalog.current_setting('concord.path', true) operator(pg_catalog.<>) '' then pg_catalog.current_setting('concord.path')
              else pg_catalog.current_setting('search_path') end;
end
$$;

-- SQL that finds rows of m by canonical keys ($1 text[]), without its end. With a tenant column only the principal's: a
-- row of another tenant is answered as one that is not there, also where no policy says so.
create function concord_internal.rows_by_key(m concord_internal.models, what text, tenant text)
returns text
language plpgsql
immutable
as $$
declare
  key_col constant text := m.key_columns[1];
  wall constant text := case when m.tenant_column is null then '' else format('(%s) operator(pg_catalog.=) %L and ',
    concord_internal.stable_text(format('t.%I', m.tenant_column), m.columns->(m.tenant_column::text)->>'t'), tenant) end;
begin
  if cardinality(m.key_columns) = 1 then
    return 'select ' || what || ' from ' || m.rel || ' t where ' || wall || 't.' || quote_ident(key_col) || ' operator(pg_catalog.=) any ($1::text[]::' || (m.columns->key_col->>'t') || '[])';
  end if;
  return format('select %s from %s t where %s(%s) operator(pg_catalog.=) any (select %s from pg_catalog.unnest($1) u(k), pg_catalog.jsonb_to_record(u.k::jsonb) k(%s))',
    what, m.rel, wall,
    (select string_agg(format('t.%I', c), ', ') from unnest(m.key_columns) c),
    (select string_agg(format('k.%I', c), ', ') from unnest(m.key_columns) c),
    concord_internal.record_of(m, m.key_columns::text[]));
end
$$;

-- Locks rows of one model in key order. `present`: the keys that were there. `unlocked`: those of them that can be read and
-- not locked, because row-level security lets the caller SELECT and not UPDATE them. A row that is deleted and created
-- again while we wait for it comes back unlocked too, but not many times in a row; a policy's answer stays.
-- A role that may delete but not update can't lock a row at all: run_commit looks again after its delete.
create function concord_internal.lock_rows(m concord_internal.models, keys text[], strength text, tenant text,
  out present text[], out unlocked text[])
language plpgsql
as $$
declare
  was_path constant text := current_setting('search_path');
  key_text constant text := '(' || concord_internal.key_expression(m.key_columns, m.columns, 't') || ')';
  look constant text := 'select pg_catalog.array_agg(s.k) from (' || concord_internal.rows_by_key(m, key_text || ' collate "C" as k', tenant) || ') s';
  look_for_others constant text := look || ' where s.k operator(pg_catalog.<>) all ($2)';
  lock constant text := 'select pg_catalog.array_agg(s.k) from ('
    || concord_internal.rows_by_key(m, key_text || ' collate "C" as k', tenant) || ' order by 1 for ' || strength || ' of t) s';
begin
  unlocked := '{}';
  perform set_config('search_path', concord_internal.callers_path(), true);
  if not pg_catalog.has_any_column_privilege(m.rel, 'update') then
    execute look into present using keys;
  else
    for attempt in 1 .. case when pg_catalog.row_security_active(m.rel) then 5 else 100 end loop
      execute lock into present using keys;
      unlocked := null;
      exit when pg_catalog.cardinality(present) operator(pg_catalog.=) pg_catalog.cardinality(keys);
      execute look_for_others into unlocked using keys, coalesce(present, '{}');
      exit when unlocked is null;
    end loop;
  end if;
  perform pg_catalog.set_config('search_path', was_path, true);
  unlocked := coalesce(unlocked, '{}');
  if unlocked <> '{}' and not row_security_active(m.rel) then
    raise serialization_failure using message = format('rows of %s were deleted and created again and again: try again', m.name);
  end if;
  present := coalesce(present, '{}') || unlocked;
end
$$;

-- The advisory locks of a request, in the order of their ids. Every commit shares its tenant, and the shared models; a
-- large one takes them alone instead of many keys.
create function concord_internal.lock_keys(r concord_internal.request, models concord_internal.models[], tenant text)
returns void
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
declare
  target record;
begin
  if concord_internal.is_large(r) then
    perform pg_advisory_xact_lock(concord_internal.tenant_lock('')), pg_advisory_xact_lock(concord_internal.tenant_lock(tenant));
    return;
  end if;
  perform pg_advisory_xact_lock_shared(concord_internal.tenant_lock('')), pg_advisory_xact_lock_shared(concord_internal.tenant_lock(tenant));
  if not concord_internal.may_lock(cardinality(r.operations) + cardinality(r.premises)) then
    return;
  end if;
  if cardinality(r.operations) = 1 and r.premises = '{}' then
    perform pg_advisory_xact_lock(concord_internal.row_lock((models[(r.operations[1]).m]).id, (r.operations[1]).key));  -- no key, no lock
    return;
  end if;
  for target in
    select l.id, bool_or(l.alone) as alone
      from (select concord_internal.row_lock((models[u.m]).id, u.key) as id, true as alone from unnest(r.operations) u where u.key is not null
            union all
            select concord_internal.row_lock((models[u.m]).id, u.key), false from unnest(r.premises) u where u.key is not null
            union all
            select concord_internal.group_lock(g.tenant, u.grp), true
              from unnest(r.premises) u, (values (lock_keys.tenant), ('')) g(tenant) where u.grp is not null) l
     group by l.id order by l.id
  loop
    if target.alone then
      perform pg_advisory_xact_lock(target.id);
    else
      perform pg_advisory_xact_lock_shared(target.id);
    end if;
  end loop;
end
$$;

-- Locks the targets, model by model in key order. Returns "m key" of each that is there, and of those that can't be locked.
create function concord_internal.lock_targets(r concord_internal.request, models concord_internal.models[], tenant text,
  out present text[], out unlocked text[])
language plpgsql
as $$
declare
  o constant concord_internal.operation := r.operations[1];
  stretch record;
  locked record;
begin
  present := '{}';
  unlocked := '{}';
  -- Neighbours in the order that want the same strength go in one statement.
  for stretch in
    select o.m, o.type = 'delete' as strong, array[o.key] as keys where cardinality(r.operations) = 1 and o.type <> 'create'
    union all
    select s.m, s.strong, s.keys from (
      with wanted as (
        select (models[u.m]).id as model, u.m, u.key collate "C" as key, bool_or(u.type = 'delete') as strong
          from unnest(r.operations) u
         where cardinality(r.operations) > 1 and u.type <> 'create' and u.key is not null group by 1, 2, 3),
      runs as (
        select *, row_number() over (order by model, key) - row_number() over (partition by model, strong order by key) as run from wanted)
      select m, strong, array_agg(key order by key) as keys from runs group by model, m, strong, run order by model, min(key)) s
  loop
    select * into locked from concord_internal.lock_rows(models[stretch.m], stretch.keys,
                                case when stretch.strong then 'update' else 'no key update' end, tenant);
    present := present || array(select stretch.m || ' ' || k from unnest(locked.present) k);
    unlocked := unlocked || array(select stretch.m || ' ' || k from unnest(locked.unlocked) k);
  end loop;
end
$$;

-- Locks everything that the request writes or rests on. A target that is missing may be one that another commit was about
-- to create when we came to wait for its key: so the rows are locked once more after the keys.
create function concord_internal.lock_request(r concord_internal.request, models concord_internal.models[], tenant text,
  out present text[], out unlocked text[])
language plpgsql
as $$
begin
  select l.present, l.unlocked into present, unlocked from concord_internal.lock_targets(r, models, tenant) l;
  perform concord_internal.lock_keys(r, models, tenant);
  if cardinality(present) < cardinality(r.operations) then
    select l.present, l.unlocked into present, unlocked from concord_internal.lock_targets(r, models, tenant) l;
  end if;
end
$$;

-- Does a request take its tenant alone, instead of single keys?
create function concord_internal.is_large(r concord_internal.request)
returns boolean
language sql
immutable
return cardinality(r.operations) + cardinality(r.premises) > concord_internal.most_locks();

select concord_internal.open_to('concord_internal.callers_path()', 'public');
select concord_internal.open_to('concord_internal.is_large(concord_internal.request)', 'concord_app');
select concord_internal.open_to('concord_internal.rows_by_key(concord_internal.models,text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.lock_rows(concord_internal.models,text[],text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.lock_keys(concord_internal.request,concord_internal.models[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.lock_targets(concord_internal.request,concord_internal.models[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.lock_request(concord_internal.request,concord_internal.models[],text)', 'concord_app');
