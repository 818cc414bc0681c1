-- Retention. A leaf whose newest delta is old enough is emptied by TRUNCATE: that waits for those who use this leaf, while
-- DROP or DETACH would wait for every reader and writer of the log. The log is never cut by DELETE, which would leave the
-- work to vacuum and the space to later rows out of order.
--
-- Why no token misses a delta without being told:
-- - Only closed ranges are cut: each transaction that could write into them has ended, prepared ones too. So a token taken
--   from now on has seen all of them, or was taken before some of them ended and has an xmin at or below them.
-- - The floor is raised past the highest id that the leaf held, in the transaction of the TRUNCATE. A token may have missed
--   something that is gone only if its xmin is below the floor: it is token_expired. One that is above has seen it all.
-- - TRUNCATE shows at once to everybody, also to snapshots that do not see the new floor yet. Its lock is held until the
--   floor is committed: whoever finds the leaf empty has waited for that commit, and any snapshot taken after finding it
--   empty sees the floor. Readers look first and compare with the floor after, under a new snapshot (READ COMMITTED).
-- - Deltas of a former epoch count as seen by every token of this one, except from transactions that were prepared before
--   and are in its list. The floor is an id of the current epoch for these as well: ids go on rising through a crash, so
--   only a token that lists such a transaction has an xmin below it. (After a restore into another cluster the ids of former
--   epochs mean nothing and nothing can be left of them. They are passed over while they are beyond the present.)
create function concord_internal.raise_floor(epoch integer, xid xid8, seq bigint)
returns void
language plpgsql
as $$
begin
  insert into concord_internal.log_floor as f (only_one, epoch, xid) values (true, raise_floor.epoch, raise_floor.xid)
      on conflict (only_one) do update set epoch = excluded.epoch, xid = excluded.xid
      where (f.epoch, f.xid) < (excluded.epoch, excluded.xid);
  insert into concord_internal.log_cut as c (only_one, seq) values (true, raise_floor.seq)
      on conflict (only_one) do update set seq = excluded.seq where c.seq < excluded.seq;
end
$$;

-- Returns why it was put off; null when the leaf is empty now.
create function concord_internal.cut_leaf(leaf regclass, last_epoch integer, last_xid xid8, last_seq bigint)
returns text
language plpgsql
as $$
declare
  past constant xid8 := (last_xid::text::bigint + 1)::text::xid8;
begin
  execute format('truncate %s', leaf);
  perform concord_internal.raise_floor(
    case when past > pg_snapshot_xmax(pg_current_snapshot()) then last_epoch else concord_internal.epoch() end, past, last_seq);
  return null;
exception when lock_not_available or deadlock_detected then
  return format('truncate %s: in use', leaf);
end
$$;

-- What lies in the default goes the same way, when nobody can be writing there: every id in use is in the range of a leaf.
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

select concord_internal.open_to('concord_internal.raise_floor(integer,xid8,bigint)');
select concord_internal.open_to('concord_internal.cut_leaf(regclass,integer,xid8,bigint)');
select concord_internal.open_to('concord_internal.default_is_closed()');
