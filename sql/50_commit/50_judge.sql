-- 4 judge: against the log, after the locks, each statement with a fresh snapshot. (Planned once, and always
-- along the indexes: a plan made for each call would cost more than the look itself, and one that sorts or scans would
-- read the whole history of a hot row, or the whole log, when statistics are behind. And without JIT, which before 18
-- takes the penalty of a plan type that is off for the cost of a large query.)
--
-- For one row the deltas come in the order of its writers' commits (each held the row's lock), so what a snapshot has
-- seen of a row is a prefix by seq: the newest delta alone says whether anything is unseen, and the boundary can be found
-- by bisection. Neither depends on how long the row's history is. Own deltas (the token's, and those of this very
-- transaction) may stand beyond the boundary; they are passed over one by one. Groups have no such order, and are looked
-- up by xid.
-- A model with a tenant column answers only for the principal's tenant: a direct call learns no more than a commit would.
-- Where row-level security binds the caller a definer can't tell whether a row is for it: only the caller's own look, inside
-- commit, can. So there row_conflict answers commit alone (see called_by), and what only narrows down where to look answers
-- so that rows of others give nothing away: they always look as if they had moved.
-- What may not be looked at is never "nothing moved": a caller (the login, or the role that it has set) who may not select
-- from the table is refused, also when commit was reached through a function that runs with somebody else's rights.
-- What breaks it: a primary key that is DEFERRABLE (track refuses it), triggers that are disabled.

-- The first of these models that the caller may not look at.
create function concord_internal.out_of_sight(models integer[])
returns integer
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select min(u.id) from unnest(models) u(id)
           where not exists (select from concord_internal.models m
                              where m.id = u.id and has_any_column_privilege(concord_internal.caller(), m.rel, 'select')
                                and (m.tenant = '' or m.tenant = (select (concord.principal()).tenant))));
end
$$;

create function concord_internal.demand_sight(models integer[])
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if concord_internal.out_of_sight(models) is not null then
    perform concord_internal.fail('forbidden', null,
      'the login, or the role that it has set, may not select from this table: grant it, or commit as a role that may');
  end if;
end
$$;

-- Which of these rows have a newest delta that the snapshot of t has not seen: candidates, own deltas not yet taken out.
create function concord_internal.moved_rows(models integer[], keys text[], t concord_internal.token)
returns integer[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
  mine jsonb;   -- of tables whose owners are kept apart: who the caller is there
begin
  perform concord_internal.demand_sight(models);
  mine := (select jsonb_object_agg(o.id, concord_internal.owner_in(o.id))
             from concord_internal.models o join concord_internal.protections p on p.rel = o.rel where o.id = any (models) and p.owner_column is not null);
  return (select array_agg(u.i::integer)
            from unnest(models, keys) with ordinality u(model, key, i)
            join concord_internal.models m on m.id = u.model
           cross join lateral (
             select d.epoch, d.xid, d.owner from concord_internal.deltas d
              where concord_internal.is_of_row(d.model, d.key, u.model, u.key)
                and (d.epoch >= case when t.xip = '{}' then t.epoch else 0 end and d.xid >= t.xmin or d.owner is not null)
                and (m.tenant_column is null or d.tenant = (select (concord.principal()).tenant))
              order by d.seq desc limit 1) newest
           where newest.epoch = t.epoch and newest.xid >= t.xmax or newest.xid = any (t.xip)
              or newest.owner <> (mine->>u.model::text));
end
$$;

-- Whose rows the caller may have told, in a table whose owners row-level security keeps apart; where it does not, null.
create function concord_internal.owner_in(model integer)
returns text
language plpgsql
stable
as $$
declare
  s record;
begin
  select * into s from concord_internal.sight(model);
  return case when s.owned then coalesce(s.owner, '') end;
end
$$;

-- Which of these models have a whole-model delta that t has not seen.
create function concord_internal.moved_models(models integer[], t concord_internal.token)
returns integer[]
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
begin
  perform concord_internal.demand_sight(models);
  return (select array_agg(distinct d.model)
            from concord_internal.deltas d
           where d.key is null and d.op <> 'g' and d.model = any (models)
             and d.epoch >= case when t.xip = '{}' then t.epoch else 0 end and d.xid >= t.xmin
             and d.xid is distinct from pg_current_xact_id_if_assigned()
             and not concord_internal.has_seen(t, d.epoch, d.xid, d.seq));
end
$$;

-- One delta as an entry of a notification's "changes", with the fields that the caller may read.
create function concord_internal.change_entry(d concord_internal.deltas, fields text[])
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_strip_nulls(jsonb_build_object('syncId', d.seq, 'fields', case when d.fields is not null then to_jsonb(fields) end,
           'by', jsonb_build_object('kind', concord_internal.kind_name(d.kind), 'id', d.actor, 'onBehalfOf', d.on_behalf_of),
           'at', d.at,
           'label', (select c.label from concord_internal.commit_of(d) c where c.tenant = (concord.principal()).tenant)))
$$;

-- Those of the names that the caller may read.
create function concord_internal.readable_names(rel regclass, names text[])
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(n order by n), '{}')
    from unnest(names) n
    join pg_attribute a on a.attrelid = rel and a.attname = n and not a.attisdropped
   where has_column_privilege(concord_internal.caller(), rel, a.attnum, 'select')
$$;

-- What of one row (or of its whole model) t has not seen and `fields` rests on; null fields: everything. `wanted`: the
-- fields whose values at the token are asked for. Null when nothing conflicts; else an object:
--   fields (those that conflict; empty: the whole row), hidden (others conflict that the caller may not read), whole,
--   changes (newest first), truncated, by, base, lost (changed, value not in the log), seq.
-- Shows no column that the caller may not read, no value of a secret one, and where row-level security is in force no values
-- from before a change that may have brought the row into the caller's sight: of another row under the same id, or of a
-- column that a policy looks at. STABLE, as row_values and capture are: asked in one statement, they speak of one moment.
create function concord_internal.row_conflict(model integer, row_key text, fields text[], wanted text[],
                                              t concord_internal.token)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
  since constant integer := case when t.xip = '{}' then t.epoch else 0 end;
  me constant xid8 := pg_current_xact_id_if_assigned();
  who constant concord.principal := concord.principal();
  m concord_internal.models;
  d concord_internal.deltas;
  names text[];
  hits text[];
  conflicting text[] := '{}';
  whole boolean := false;
  newest concord_internal.deltas;
  low bigint := 0;
  high bigint;
  middle bigint;
  changes jsonb := '[]';
  truncated boolean := false;
  base jsonb := '{}';
  lost text[] := '{}';
  done text[] := '{}';
  old jsonb;
  field text;
  by_depth jsonb := '{}';
  policed text[];            -- columns that policies look at
  s record;                  -- concord_internal.sight, which 60_feed makes
  stack text;
  came boolean := false;     -- into sight, perhaps
  untold jsonb := '{}';      -- of each field the first change of the whole model, which holds no values
begin
  perform concord_internal.demand_sight(array[model]);
  select * into m from concord_internal.models o where o.id = model;
  if (select c.relrowsecurity from pg_class c where c.oid = m.rel) then
    policed := array(select a.attname from pg_depend dep join pg_policy p on p.oid = dep.objid and p.polrelid = m.rel
                       join pg_attribute a on a.attrelid = m.rel and a.attnum = dep.refobjsubid
                      where dep.classid = 'pg_policy'::regclass and dep.refclassid = 'pg_class'::regclass and dep.refobjid = m.rel);
    select * into s from concord_internal.sight(model);
    if s.model is null or s.own_only or s.owned or s.groups_only is not null then
      get diagnostics stack = pg_context;
      if not (concord_internal.called_by(stack, 'concord_internal.row_conflict', 'concord_internal.look', 'concord_internal.judge_request', 'concord_internal.run_whole')
              or concord_internal.called_by(stack, 'concord_internal.row_conflict', 'concord_internal.judge_request', 'concord_internal.run_whole')
              or concord_internal.called_by(stack, 'concord_internal.row_conflict', 'concord_internal.deleted_unjudged', 'concord_internal.run_whole')) then
        perform concord_internal.fail('forbidden', null, 'under row-level security only concord.commit asks what happened to a row');
      end if;
    end if;
  end if;
  if concord_internal.signature(m.rel) <> m.signature then
    m.columns := concord_internal.columns_of(m.rel);
  end if;
  wanted := concord_internal.readable_names(m.rel, wanted);

  -- Newest first, until a delta that the snapshot has seen, or until enough is known.
  for d in
    select x.* from concord_internal.deltas x
     where concord_internal.is_of_row(x.model, x.key, m.id, row_key)
       and (m.tenant_column is null or x.tenant = who.tenant) and x.epoch >= since and x.xid >= t.xmin
     order by x.seq desc
  loop
    continue when d.xid = me;
    exit when not (d.epoch = t.epoch and d.xid >= t.xmax or d.xid = any (t.xip));
    high := d.seq;
    continue when concord_internal.has_seen(t, d.epoch, d.xid, d.seq);
    names := d.fields::text[];
    if names is not null and not m.columns ?& names then
      d.fields := null;  -- it names a column that is gone: what it became can't be told
    end if;
    came := came or (policed is not null and (d.fields is null or names && policed));
    if d.fields is null then
      whole := true;
      hits := null;
    else
      hits := array(select n from unnest(names) n where fields is null or n = any (fields));
      continue when hits = '{}';
      conflicting := conflicting || array(select h from unnest(hits) h where h <> all (conflicting));
    end if;
    if newest.seq is null then
      newest := d;
    end if;
    truncated := jsonb_array_length(changes) >= 20;
    exit when truncated and policed is null and (whole or conflicting @> coalesce(fields, wanted));
    if not truncated then
      changes := changes || concord_internal.change_entry(d, concord_internal.readable_names(m.rel, hits));
    end if;
  end loop;
  -- And the whole model: seldom any.
  for d in
    select x.* from concord_internal.deltas x
     where x.key is null and x.op <> 'g' and x.model = m.id and x.epoch >= since and x.xid >= t.xmin
     order by x.xid desc
  loop
    continue when d.xid = me or concord_internal.has_seen(t, d.epoch, d.xid, d.seq);
    names := d.fields::text[];
    if names is not null and not m.columns ?& names then
      d.fields := null;
    end if;
    came := came or (policed is not null and (d.fields is null or names && policed));
    -- (A row is there after a TRUNCATE only by a create, which the token has seen or which makes its values untold itself.)
    for field in select f from unnest(wanted) f where d.op <> 't' and (d.fields is null or f = any (names)) loop
      untold := untold || jsonb_build_object(field, least((untold->>field)::bigint, d.seq));
    end loop;
    if d.fields is null then
      whole := true;
      hits := null;
    else
      hits := array(select n from unnest(names) n where fields is null or n = any (fields));
      continue when hits = '{}';
      conflicting := conflicting || array(select h from unnest(hits) h where h <> all (conflicting));
    end if;
    if newest.seq is null or d.seq > newest.seq then
      newest := d;
    end if;
    if jsonb_array_length(changes) <= 40 then
      changes := changes || concord_internal.change_entry(d, concord_internal.readable_names(m.rel, hits));
    end if;
  end loop;
  if newest.seq is null then
    return null;
  end if;
  truncated := truncated or jsonb_array_length(changes) > 20;
  changes := concord_internal.newest_changes(changes);

  -- The boundary: the first delta of the row that the snapshot has not seen.
  while low < high loop
    middle := low + (high - low) / 2;
    select * into d from concord_internal.deltas x
     where concord_internal.is_of_row(x.model, x.key, m.id, row_key)
       and (m.tenant_column is null or x.tenant = who.tenant) and x.epoch >= since and x.xid >= t.xmin and x.seq >= middle
     order by x.seq limit 1;
    exit when d.seq is null;
    if d.epoch = t.epoch and d.xid >= t.xmax or d.xid = any (t.xip) then
      high := middle;
      exit when d.seq = middle and middle = low;
    else
      low := d.seq + 1;
    end if;
  end loop;

  -- Upwards from there: the first that changed a field holds its value at the token. A statement inside an AFTER ROW
  -- trigger logs before the statement that caused it, so within one transaction the lower depth wins.
  for d in
    select x.* from concord_internal.deltas x
     where concord_internal.is_of_row(x.model, x.key, m.id, row_key)
       and (m.tenant_column is null or x.tenant = who.tenant) and x.epoch >= since and x.xid >= t.xmin
       and x.seq >= low and high is not null
     order by x.seq
  loop
    exit when done @> wanted and by_depth->>'xid' is distinct from d.xid::text;
    if by_depth->>'xid' is distinct from d.xid::text then
      by_depth := jsonb_build_object('xid', d.xid::text);
    end if;
    continue when d.xid = me or concord_internal.has_seen(t, d.epoch, d.xid, d.seq);
    old := case when not came then concord_internal.as_jsonb(d.before) - m.secret_fields::text[] end;
    names := d.fields::text[];
    for field in select f from unnest(wanted) f where names is null or f = any (names) loop
      if field <> all (done) or (by_depth->>'xid' = d.xid::text and d.depth < coalesce((by_depth->>field)::integer, 0)) then
        done := done || field;
        by_depth := by_depth || jsonb_build_object(field, d.depth);
        lost := array_remove(lost, field);
        if old ? field and not coalesce(d.seq > (untold->>field)::bigint, false) then
          base := base || jsonb_build_object(field, old->field);
        else
          lost := lost || field;
          base := base - field;
        end if;
      end if;
    end loop;
  end loop;
  -- Of what changed and is not among what the row's deltas hold nothing is known: a change of the whole model holds no values,
  -- and a delta that names a column which is gone may have been of any.
  lost := lost || array(select f from unnest(wanted) f where f <> all (done) and (whole or untold ? f));

  return jsonb_build_object(
    'fields', case when whole then '[]'::jsonb
                   else to_jsonb(concord_internal.readable_names(m.rel, conflicting)) end,
    'hidden', not whole and cardinality(concord_internal.readable_names(m.rel, conflicting)) < cardinality(conflicting),
    'whole', whole, 'changes', changes, 'truncated', truncated, 'base', base, 'lost', to_jsonb(lost),
    'seq', newest.seq,
    'by', jsonb_strip_nulls(jsonb_build_object('kind', concord_internal.kind_name(newest.kind), 'id', newest.actor, 'onBehalfOf', newest.on_behalf_of)));
end
$$;

-- The newest twenty, newest first.
create function concord_internal.newest_changes(changes jsonb)
returns jsonb
language sql
immutable
as $$
  select coalesce(jsonb_agg(n.c order by (n.c->>'syncId')::bigint desc), '[]')
    from (select c from jsonb_array_elements(changes) c order by (c->>'syncId')::bigint desc limit 20) n
$$;

create function concord_internal.may_see_model(model integer)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from concord_internal.models m
                  where m.id = model and has_any_column_privilege(concord_internal.caller(), m.rel, 'select'))
$$;

-- The same for a group, seen by the principal's tenant and over shared models: what is in it, and whole-model changes of
-- every model whose rows may be. Who changed what is told only of tables that the caller may select from.
create function concord_internal.group_conflict(grp text, t concord_internal.token)
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
  who constant concord.principal := concord.principal();
  since constant integer := case when t.xip = '{}' then t.epoch else 0 end;
  me constant xid8 := pg_current_xact_id_if_assigned();
  d concord_internal.deltas;
  newest concord_internal.deltas;
  changes jsonb := '[]';
  told integer := 0;
  moved boolean := false;
  s record;                  -- concord_internal.sight, which 60_feed makes
  sighted integer;
begin
  for d in
    select x.* from unnest(array[who.tenant, '']) o(tenant)
     cross join lateral (
       (select y.* from concord_internal.deltas y
         where hashtextextended(y.grp, hashtextextended(y.tenant, 0)) = hashtextextended(group_conflict.grp, hashtextextended(o.tenant, 0))
           and y.grp is not null and y.grp = group_conflict.grp and y.tenant = o.tenant and y.epoch = t.epoch and y.xid >= t.xmax
         order by y.xid desc)
       union all
       (select y.* from concord_internal.deltas y
         where hashtextextended(y.grp, hashtextextended(y.tenant, 0)) = hashtextextended(group_conflict.grp, hashtextextended(o.tenant, 0))
           and y.grp is not null and y.grp = group_conflict.grp and y.tenant = o.tenant and y.epoch >= since and y.xid = any (t.xip))
       union all
       (select y.* from concord_internal.deltas y join concord_internal.models m on m.id = y.model
         where o.tenant = '' and y.key is null and y.op <> 'g' and y.epoch >= since and y.xid >= t.xmin and m.tenant in (who.tenant, '')
           and exists (select from unnest(m.groups) g where split_part(g, ':', 1) = split_part(group_conflict.grp, ':', 1)))) x
  loop
    continue when d.xid = me or concord_internal.has_seen(t, d.epoch, d.xid, d.seq);
    moved := true;
    continue when not concord_internal.may_see_model(d.model);
    if d.key is not null or d.op = 'g' then
      if d.model is distinct from sighted then
        s := concord_internal.sight(d.model);
        sighted := d.model;
      end if;
      continue when (s.own_only or s.owned or s.groups_only is not null) and not concord_internal.in_sight(d, s::concord_internal.sight, who);
    end if;
    told := told + 1;
    exit when told > 40;
    if newest.seq is null or d.seq > newest.seq then
      newest := d;
    end if;
    changes := changes || concord_internal.change_entry(d, '{}');
  end loop;
  if not moved then
    return null;
  end if;
  return jsonb_build_object('fields', '[]'::jsonb, 'whole', true,
    'changes', (select coalesce(jsonb_agg(jsonb_set(c, '{fields}', '[]')), '[]') from jsonb_array_elements(concord_internal.newest_changes(changes)) c),
    'truncated', told > 20, 'base', '{}'::jsonb, 'lost', '[]'::jsonb, 'seq', newest.seq,
    'by', case when newest.seq is not null then jsonb_strip_nulls(jsonb_build_object('kind', concord_internal.kind_name(newest.kind), 'id', newest.actor, 'onBehalfOf', newest.on_behalf_of)) end);
end
$$;

-- Does t know which rows this group holds? Not when a model of the kind came, went or changed since, or is paused.
create function concord_internal.knows_group(grp text, t concord_internal.token)
returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
begin
  return not exists (select from concord_internal.group_horizons h
                      where h.kind = split_part(grp, ':', 1) and h.tenant in (who.tenant, '')
                        and not concord_internal.has_seen(t, h.epoch, h.xid, 0))
     and not exists (select from concord_internal.models m
                      where (m.paused or (m.partitioned or concord_internal.signature(m.rel) <> m.signature)
                                          and (concord_internal.live_model(m)).id is null)
                        and m.tenant in (who.tenant, '')
                        and exists (select from unnest(m.groups) g where split_part(g, ':', 1) = split_part(grp, ':', 1)));
end
$$;

select concord_internal.open_to('concord_internal.moved_rows(integer[],text[],concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.moved_models(integer[],concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.change_entry(concord_internal.deltas,text[])');
select concord_internal.open_to('concord_internal.readable_names(regclass,text[])');
select concord_internal.open_to('concord_internal.row_conflict(integer,text,text[],text[],concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.out_of_sight(integer[])', 'concord_app');
select concord_internal.open_to('concord_internal.demand_sight(integer[])', 'concord_app');
select concord_internal.open_to('concord_internal.newest_changes(jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.may_see_model(integer)');
select concord_internal.open_to('concord_internal.group_conflict(text,concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.knows_group(text,concord_internal.token)', 'concord_app');
