-- The log's leaves. Made by concord.maintain() at run time, so they are no members of the extension, and pg_dump takes
-- them as it takes any table. deltas_default is the pack's own: what no leaf is ready for goes there, so that late
-- maintenance never breaks a write. Each leaf is a range of transaction ids within one epoch.
--
-- The indexes of deltas_default are the pattern for those of every leaf.
create table concord_internal.upkeep (
  only_one boolean primary key default true check (only_one),
  maintained_at timestamptz not null,
  epoch integer not null,               -- of the ids below
  planned_xid xid8 not null,            -- when the newest leaf was planned: how fast ids are used up
  planned_at timestamptz not null,
  blanked_to xid8 not null,             -- commits below this have had their receipts blanked
  announced_by xid8,                    -- raised the floor past leaves that are still full (see 20_cut); null: nothing is pending
  watched text[]                        -- transactions that may have read the former floor, once they have been listed
);

create function concord_internal.leaves(out leaf regclass, out epoch integer, out from_xid xid8, out to_xid xid8)
returns setof record
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  -- FOR VALUES FROM (3, '1000') TO (3, '2000'); the default has nulls.
  select c.oid::regclass, b.part[1]::integer, b.part[2]::xid8, b.part[3]::xid8
    from pg_inherits i
    join pg_class c on c.oid = i.inhrelid
    left join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid),
      '^FOR VALUES FROM \((\d+), ''(\d+)''\) TO \(\d+, ''(\d+)''\)$') b(part) on true
   where i.inhparent = 'concord_internal.deltas'::regclass
   order by 2, 3
$$;

-- Can no transaction write into this range any more? Those in progress, prepared ones too, are in the snapshot's list or at
-- or beyond its end; of a former epoch only the list can hold some.
create function concord_internal.range_is_closed(epoch integer, from_xid xid8, to_xid xid8)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  now_seen constant pg_snapshot := pg_current_snapshot();
begin
  return case when epoch = concord_internal.epoch() then to_xid <= pg_snapshot_xmin(now_seen)
              else not exists (select from pg_snapshot_xip(now_seen) x where x >= from_xid and x < to_xid) end;
end
$$;

create function concord_internal.leaf_is_empty(leaf regclass)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  something boolean;
begin
  execute format('select exists (select from %s)', leaf) into something;
  return not something;
end
$$;

-- What a leaf holds, if nothing in it is newer than the limit; no row of it is read for longer than it takes to know that
-- something is. The newest are at the end, as a rule: only if those are old enough is the whole leaf read.
create function concord_internal.leaf_content(leaf regclass, older_than timestamptz,
                                              out last_epoch integer, out last_xid xid8, out last_seq bigint)
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  pages constant bigint := pg_relation_size(leaf) / current_setting('block_size')::bigint;
  young boolean;
  newest timestamptz;
begin
  execute format('select exists (select from %s where ctid >= %L::tid and at >= $1)', leaf, format('(%s,0)', greatest(pages - 4, 0)))
     into young using older_than;
  if young then
    return;
  end if;
  execute format('select max(at), max(seq), max(epoch) from %s', leaf) into newest, last_seq, last_epoch;
  if newest < older_than then
    execute format('select max(xid::text::bigint)::text::xid8 from %s where epoch = $1', leaf) into last_xid using last_epoch;
  else
    last_seq := null;
    last_epoch := null;
  end if;
end
$$;

-- When the oldest delta was logged, nearly: the oldest of a leaf are at its beginning.
create function concord_internal.oldest_delta()
returns timestamptz
language plpgsql
stable
as $$
declare
  l record;
  first_at timestamptz;
  oldest timestamptz;
begin
  for l in select f.leaf from concord_internal.leaves() f loop
    execute format('select min(at) from (select at from %s limit 100) first', l.leaf) into first_at;
    oldest := least(oldest, first_at);
  end loop;
  return oldest;
end
$$;

select concord_internal.open_to('concord_internal.oldest_delta()');
select concord_internal.open_to('concord_internal.leaves()');
select concord_internal.open_to('concord_internal.range_is_closed(integer,xid8,xid8)');
select concord_internal.open_to('concord_internal.leaf_is_empty(regclass)');
select concord_internal.open_to('concord_internal.leaf_content(regclass,timestamptz)');
