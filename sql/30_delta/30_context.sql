-- What a generated trigger asks before it looks at the rows: are the table's columns still those that it was made from?
--
-- The answer is a constant of the cached plan. shape_when_planned() (for commits: signature_when_planned()) is declared
-- IMMUTABLE, which it is not, and is called with constants in a query over the transition table: the planner calls it once,
-- and any change of the table's columns invalidates every plan over that table's transition tables, in every session, before the statement that comes next can
-- hold the table's lock. So the comparison costs nothing until an ALTER TABLE, and is then made anew. A rollback of the
-- ALTER TABLE invalidates once more.
-- What breaks it: a query that does not depend on the table, so the literal is only believed where the trigger fires for
-- the table it was made for (a partition, or a shard under another name, is looked at each time: same_columns); and a fixed
-- snapshot, which shows the catalogs as they were, also where the planner looks: in it nothing is made a constant.
create function concord_internal.shape_when_planned(rel oid)
returns bigint[]
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') = 'read committed' then
    return concord_internal.shape(rel);
  end if;
  return null;
end
$$;

create function concord_internal.signature_when_planned(rel oid)
returns bigint[]
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if current_setting('transaction_isolation') = 'read committed' then
    return concord_internal.signature(rel);
  end if;
  return null;
end
$$;

-- In a fixed snapshot: are the columns that it shows still there, under these names, and no others? Descriptions of objects
-- come from the live catalogs. (A type that changed is a new table to an old snapshot, and its rows are not there.)
create function concord_internal.snapshot_shows_columns(rel oid)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select current_setting('transaction_isolation') = 'read committed'
      or (pg_identify_object('pg_class'::regclass, rel, (count(*) + 1)::integer)).identity is null
         and bool_and(a.attisdropped or (pg_identify_object('pg_class'::regclass, rel, a.attnum)).identity is not distinct from
                                        (pg_identify_object('pg_class'::regclass, rel, 0)).identity || '.' || quote_ident(a.attname))
    from pg_attribute a where a.attrelid = rel and a.attnum > 0
$$;

create function concord_internal.same_columns(rel oid, made_from bigint[])
returns boolean
language plpgsql
as $$
begin
  return concord_internal.shape(rel) = made_from and concord_internal.snapshot_shows_columns(rel);
end
$$;

select concord_internal.open_to('concord_internal.shape_when_planned(oid)');
select concord_internal.open_to('concord_internal.signature_when_planned(oid)', 'concord_app');
select concord_internal.open_to('concord_internal.snapshot_shows_columns(oid)');
select concord_internal.open_to('concord_internal.same_columns(oid,bigint[])');
