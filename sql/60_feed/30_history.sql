-- One row's changes, newest first.
--
-- For one row seq is the order in which its changes happened, but for one case: a statement inside an AFTER ROW trigger
-- logs before the statement whose row fired it, since statement triggers come last. depth tells them apart. Within one
-- transaction a delta belongs under the next shallower one after it: read from the newest down, the deltas of a
-- transaction are a tree that is walked parent first, and `above` is the way down to where we are. In the answer the
-- children (which happened later) come before their parent. A transaction's deltas of one row are never interleaved with
-- another's, which waits for the row.
-- What it can't tell: a statement inside a BEFORE trigger, which happened first, and one inside a trigger of a table that
-- is not tracked, followed by a plain one. Both are shown as if they came after.
create function concord_internal.history_of(model integer, row_key text, max integer)
returns setof concord.change
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  s constant concord_internal.sight := concord_internal.sight(model);
  d concord_internal.deltas;
  above concord_internal.deltas[] := '{}';   -- shallower statements of the same transaction, the outermost first
  c concord.change;
  ended boolean;
begin
  if s.model is null then
    return;
  end if;
  for d in
    select * from (
      (select x.* from concord_internal.deltas x
        where concord_internal.is_of_row(x.model, x.key, history_of.model, row_key))
      union all
      (select x.* from concord_internal.deltas x
        where x.key is null and x.op <> 'g' and x.model = history_of.model)) u
     order by u.seq desc
  loop
    -- Those that d is not beneath are complete: nothing that is still to come happened after them.
    while above <> '{}' loop
      ended := above[cardinality(above)].xid <> d.xid or above[cardinality(above)].epoch <> d.epoch
               or above[cardinality(above)].depth >= d.depth;
      exit when not ended;
      c := concord_internal.shown(above[cardinality(above)], s, who);
      above := above[:cardinality(above) - 1];
      if c.op is not null then
        return next c;
        max := max - 1;
        if max = 0 then
          return;
        end if;
      end if;
    end loop;
    above := above || d;
  end loop;
  while above <> '{}' and max > 0 loop
    c := concord_internal.shown(above[cardinality(above)], s, who);
    above := above[:cardinality(above) - 1];
    if c.op is not null then
      return next c;
      max := max - 1;
    end if;
  end loop;
end
$$;

-- A model by name: as requests know it (the principal's tenant, then shared ones), else the one of that name whose table
-- the caller owns.
create function concord_internal.owned_model(model text)
returns concord_internal.models
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  acting constant text := coalesce((concord.principal()).tenant, '');
  m concord_internal.models;
begin
  select * into m from concord_internal.models o
   where o.name = model and concord_internal.owns(o.rel)
   order by o.tenant = acting desc, o.tenant = '' desc, o.id limit 1;
  return m;
end
$$;

create function concord.history(model text, id text, max integer default 100)
returns setof concord.change
language plpgsql
stable
as $$
declare
  m concord_internal.models;
begin
  if model is null or id is null or coalesce(max, 0) < 1 then
    perform concord_internal.fail('invalid_request', case when model is null then 'model' when id is null then 'id' else 'max' end,
      case when model is null or id is null then 'may not be null' else 'at least 1' end);
  end if;
  m := (concord_internal.models_named(array[model]))[1];
  if m.id is null then
    m := concord_internal.owned_model(model);
  end if;
  if m.id is null then
    perform concord_internal.fail('model_unknown', 'model', format('no tracked table goes by the name %L', model), jsonb_build_object('model', model));
  end if;
  -- As the caller, under its search_path: reading an id runs the input function of the key's type.
  perform pg_catalog.set_config('concord.path', '', true);
  return query select * from concord_internal.history_of(m.id, concord_internal.canonical_id(concord_internal.readable_model(m), id), max);
end
$$;
comment on function concord.history(text, text, integer) is
  'The changes of one row that the log still holds, newest first, at most max of them; also changes of the whole model
(TRUNCATE). Shows what the caller''s rights allow at this moment: columns that it may not select vanish from fields and
before, and so does a change of such columns alone; tenants other than the principal''s are seen by who owns the table;
under row-level security that binds the caller, only what the acting principal wrote itself, without old values.
Answers for a row that is gone, too; a row that never was, or is not for the caller, has no changes.
Errors: model_unknown, invalid_request (param: model, id, max).';

select concord_internal.open_to('concord_internal.history_of(integer,text,integer)', 'concord_app');
select concord_internal.open_to('concord_internal.owned_model(text)', 'public');
select concord_internal.open_to('concord.history(text,text,integer)', 'concord_app');
