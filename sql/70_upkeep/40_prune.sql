-- Commits and held operations, in batches from the oldest on. In the order of commits_xid, which is nearly that of time,
-- so that a run reads what it takes away and one batch more.

-- Receipts past idempotency_retention: the key is free again, and the values that a receipt may hold are gone. Which commit
-- a delta belongs to, and its label, stay. Returns how many; moves the mark.
create function concord_internal.blank_receipts(inout u concord_internal.upkeep, out blanked bigint)
language plpgsql
as $$
declare
  cutoff constant timestamptz := clock_timestamp() - concord_internal.setting('idempotency_retention')::interval;
  ended constant xid8 := pg_snapshot_xmin(pg_current_snapshot());  -- below it no commit can still turn up
  batch record;
begin
  blanked := 0;
  for i in 1 .. 20 loop
    with due as (
      select c.ctid as place, c.xid, c.at < cutoff as old
        from concord_internal.commits c where c.xid >= (u).blanked_to and c.xid < ended
       order by c.xid fetch first 5000 rows with ties),
    done as (
      update concord_internal.commits c set idempotency_key = null, digest = null, receipt = null, about = null
       where c.ctid = any (array(select place from due where old)) and c.idempotency_key is not null
      returning 1)
    select (select count(*) from done) as changed, count(*) filter (where old) as passed,
           min(d.xid::text::bigint) filter (where not d.old) as young, max(d.xid::text::bigint) + 1 as beyond
      into batch from due d;
    blanked := blanked + batch.changed;
    u.blanked_to := coalesce(batch.young, batch.beyond, u.blanked_to::text::bigint)::text::xid8;
    exit when batch.passed < 5000 or batch.young is not null;
  end loop;
end
$$;

-- Commits past retention. (Ids of another cluster, after a restore, may lie beyond the present: those are at the other end.)
create function concord_internal.prune_commits()
returns bigint
language plpgsql
as $$
declare
  cutoff constant timestamptz := clock_timestamp() - concord_internal.setting('retention')::interval;
  present constant xid8 := pg_snapshot_xmax(pg_current_snapshot());
  pruned bigint := 0;
  n bigint;
begin
  for i in 1 .. 20 loop
    delete from concord_internal.commits c
     where c.ctid = any (array(select o.ctid from concord_internal.commits o order by o.xid limit 5000)) and c.at < cutoff;
    get diagnostics n = row_count;
    pruned := pruned + n;
    exit when n < 5000;
  end loop;
  delete from concord_internal.commits c
   where c.ctid = any (array(select o.ctid from concord_internal.commits o where o.xid > present order by o.xid desc limit 5000)) and c.at < cutoff;
  get diagnostics n = row_count;
  return pruned + n;
end
$$;

create function concord_internal.prune_held()
returns bigint
language plpgsql
as $$
declare
  cutoff constant timestamptz := clock_timestamp() - concord_internal.setting('retention')::interval;
  n bigint;
begin
  delete from concord_internal.held h
   where h.ctid = any (array(select o.ctid from concord_internal.held o where o.at < cutoff order by o.at limit 100000));
  get diagnostics n = row_count;
  return n;
end
$$;

select concord_internal.open_to('concord_internal.blank_receipts(concord_internal.upkeep)');
select concord_internal.open_to('concord_internal.prune_commits()');
select concord_internal.open_to('concord_internal.prune_held()');
