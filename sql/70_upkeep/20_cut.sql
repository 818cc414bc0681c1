-- Retention. A leaf whose newest delta is old enough is emptied by TRUNCATE: that waits for those who use this leaf, while
-- DROP or DETACH would wait for every reader and writer of the log. The log is never cut by DELETE, which would leave the
-- work to vacuum and the space to later rows out of order.
--
-- Why no token misses a delta without being told:
-- - Only closed ranges are cut: each transaction that could write into them has ended, prepared ones too. So a token taken
--   from now on has seen all of them, or was taken before some of them ended and has an xmin at or below them.
-- - First the floor is raised past the highest id that the leaf holds. A token may miss something there only if its xmin is
--   below the floor, and then it is token_expired. One that is above has seen it all.
-- - TRUNCATE shows at once, under every snapshot. Whoever compared a token with the floor as it was before, and looks into
--   the leaf only after it was emptied (a commit that waits for a row in between, say), would find no conflict where there
--   was one. So a leaf is emptied when no transaction is left that began before the new floor was committed: one call of
--   maintain announces the cut by raising the floor; the next lists who is there, and cuts when all of them have ended, at
--   once or in a later call. Readers need to compare with the floor once, before or after they look, at any isolation level.
-- - Deltas of a former epoch count as seen by every token of this one, except from transactions that were prepared before
--   and are in its list. The floor is an id of the current epoch for these as well: ids go on rising through a crash, so
--   only a token that lists such a transaction has an xmin below it. (After a restore into another cluster the ids of former
--   epochs mean nothing and nothing can be left of them. They are passed over while they are beyond the present.)
create type concord_internal.doomed_leaf as (
  leaf regclass,
  epoch integer, floor xid8, seq bigint   -- what floor and log_cut have to be before it is cut
);

create function concord_internal.doomed_leaves()
returns setof concord_internal.doomed_leaf
language plpgsql
volatile
as $$
declare
  cutoff constant timestamptz := clock_timestamp() - concord_internal.setting('retention')::interval;
  l record;
  content record;
  d concord_internal.doomed_leaf;
begin
  for l in select * from concord_internal.leaves() loop
    continue when concord_internal.leaf_is_empty(l.leaf)
               or not case when l.epoch is null then concord_internal.default_is_closed()
                           else concord_internal.range_is_closed(l.epoch, l.from_xid, l.to_xid) end;
    content := concord_internal.leaf_content(l.leaf, cutoff);
    continue when content.last_seq is null;
    d.leaf := l.leaf;
    d.seq := content.last_seq;
    d.floor := (content.last_xid::text::bigint + 1)::text::xid8;
    d.epoch := case when d.floor > pg_snapshot_xmax(pg_current_snapshot()) then content.last_epoch else concord_internal.epoch() end;
    return next d;
  end loop;
end
$$;

-- What lies in the default can be cut when nobody can be writing there: every id in use is in the range of a leaf.
create function concord_internal.default_is_closed()
returns boolean
language plpgsql
volatile
as $$
declare
  now_seen constant pg_snapshot := pg_current_snapshot();
begin
  return exists (select from concord_internal.leaves() l
                  where l.epoch = concord_internal.epoch() and l.from_xid <= pg_snapshot_xmin(now_seen)
                    and l.to_xid > pg_current_xact_id());
end
$$;

create function concord_internal.raise_floor(d concord_internal.doomed_leaf)
returns void
language plpgsql
as $$
begin
  insert into concord_internal.log_floor as f (only_one, epoch, xid) values (true, d.epoch, d.floor)
      on conflict (only_one) do update set epoch = excluded.epoch, xid = excluded.xid
      where (f.epoch, f.xid) < (excluded.epoch, excluded.xid);
  insert into concord_internal.log_cut as c (only_one, seq) values (true, d.seq)
      on conflict (only_one) do update set seq = excluded.seq where c.seq < excluded.seq;
end
$$;

create function concord_internal.is_below_floor(d concord_internal.doomed_leaf)
returns boolean
language plpgsql
volatile
as $$
begin
  return exists (select from concord_internal.log_floor f where (f.epoch, f.xid) >= (d.epoch, d.floor)) and concord_internal.log_cut() >= d.seq;
end
$$;

-- The transactions that are running in this database, whether they have an id or not, other than this one.
create function concord_internal.transactions_here()
returns text[]
language plpgsql
volatile
as $$
begin
  return array(
    select l.virtualtransaction from pg_locks l
      left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'virtualxid' and l.mode = 'ExclusiveLock' and l.granted and l.pid <> pg_backend_pid()
       and (a.pid is null or a.usesysid is not null  -- not autovacuum
                             and a.datid = (select oid from pg_database where datname = current_database())));
end
$$;

-- Those of them that are still running after a moment's patience.
create function concord_internal.wait_for_transactions(watched text[])
returns text[]
language plpgsql
volatile
as $$
declare
  until constant timestamptz := clock_timestamp() + replace(concord_internal.setting('maintain_lock_timeout'), 'min', ' minutes')::interval;
begin
  loop
    watched := array(select w from unnest(watched) w where w = any (concord_internal.transactions_here()));
    exit when watched = '{}' or clock_timestamp() > until;
    perform pg_sleep(0.005);
  end loop;
  return watched;
end
$$;

-- Returns why it was put off; null when the leaf is empty now.
create function concord_internal.cut_leaf(leaf regclass)
returns text
language plpgsql
as $$
begin
  execute format('truncate %s', leaf);
  return null;
exception when lock_not_available or deadlock_detected then
  return format('truncate %s: in use', leaf);
end
$$;

select concord_internal.open_to('concord_internal.doomed_leaves()');
select concord_internal.open_to('concord_internal.default_is_closed()');
select concord_internal.open_to('concord_internal.raise_floor(concord_internal.doomed_leaf)');
select concord_internal.open_to('concord_internal.is_below_floor(concord_internal.doomed_leaf)');
select concord_internal.open_to('concord_internal.transactions_here()');
select concord_internal.open_to('concord_internal.wait_for_transactions(text[])');
select concord_internal.open_to('concord_internal.cut_leaf(regclass)');
