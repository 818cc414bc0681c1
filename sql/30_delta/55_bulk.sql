-- Changes of some fields in very many rows, a backfill for one, which would fill the log with a delta each: in a transaction
-- that said so, an UPDATE of several rows logs one delta of the whole model, with the fields, in place of those of the rows
-- in which nothing beside these fields changed. Coarse, and sound:
--
-- - What is left out of the log is in it. The trigger writes the coarse delta for each such statement, after its rows are
--   locked: a token of the transaction's own that was taken before the statement has not seen it, and for a row it stands
--   in the order of seq among the row's own deltas. A row in which another field changed too, its key, tenant or group
--   for one, has its delta as ever.
-- - Nobody else's writes are left out. What was said is a row of a table that only concord.bulk() writes, for the owner of
--   the tracked table and under the transaction's id. The setting concord.bulk only says that it is worth looking there,
--   so that other transactions need not: who sets it by hand looks, and finds nothing.
create table concord_internal.bulk_updates (
  epoch integer not null,
  xid xid8 not null,
  model integer not null,
  fields name[] not null,
  primary key (epoch, xid, model)
);

create function concord.bulk(rel regclass, fields name[])
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m concord_internal.models;
  here constant xid8 := pg_current_xact_id();
  wrong name;
begin
  perform concord_internal.demand_model(rel);
  select * into m from concord_internal.models o where o.rel = bulk.rel;
  if fields is null or cardinality(fields) = 0 then
    perform concord_internal.fail('invalid_request', 'fields', 'fields: the columns that the updates are about to change');
  end if;
  select f into wrong from unnest(fields) f where f is null or not concord_internal.columns_of(rel) ? f::text limit 1;
  if found then
    perform concord_internal.fail('invalid_request', 'fields', format('%s has no column "%s"', rel, wrong));
  end if;
  select f into wrong from unnest(fields) f
   where f = any (m.key_columns) or f = m.tenant_column or f in (select concord_internal.template_columns(m.groups)) limit 1;
  if found then
    perform concord_internal.fail('invalid_request', 'fields',
      format('"%s" says which row it is, whose, or in which group: such changes are logged row by row', wrong));
  end if;
  delete from concord_internal.bulk_updates b
   where (b.epoch, b.xid) <> (concord_internal.epoch(), here) and b.xid < pg_snapshot_xmin(pg_current_snapshot());
  insert into concord_internal.bulk_updates as b values (concord_internal.epoch(), here, m.id, fields)
    on conflict (epoch, xid, model) do update
    set fields = array(select distinct f from unnest(b.fields || excluded.fields) f order by f);
  perform set_config('concord.bulk', 'said', true);
end
$$;
comment on function concord.bulk(regclass, name[]) is
  'For a backfill: until the transaction ends, an UPDATE of several rows of rel that changes nothing but these fields logs one
change of the whole model, with the fields, and not one for each row. Whoever read any row of the model before is then stale
in these fields: guarded writes and premises on other fields go on, premises on groups do not. history and changes show it
without an id and without old values. A row in which another column changed too (a generated one, or one that a trigger sets:
name it here) is logged as ever, and so are inserts, deletes, and updates of one row. Columns of the key, the tenant and the groups are refused. Owner of the table only. Errors:
model_unknown, forbidden, invalid_request.';

-- What this transaction said of the model. Asked by the triggers, where the setting says that there may be something.
create function concord_internal.bulk_fields(model integer, epoch integer)
returns name[]
language sql
stable
as $$
  select b.fields from concord_internal.bulk_updates b
   where b.model = bulk_fields.model and b.epoch = bulk_fields.epoch and b.xid = pg_current_xact_id_if_assigned()
$$;

select concord_internal.open_to('concord.bulk(regclass,name[])', 'public');
select concord_internal.open_to('concord_internal.bulk_fields(integer,integer)');
