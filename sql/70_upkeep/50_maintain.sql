-- What has to be done now and then: from cron, every ten minutes or so. In an order that takes the locks which others
-- could mind last, since all of them are held until the transaction ends. Nothing waits for more than
-- maintain_lock_timeout; what could not be had is said and tried again next time.
create function concord.maintain()
returns jsonb
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '100ms'
as $$
declare
  most_leaves constant integer := 16;    -- the default among them
  pruned jsonb;
  announced text[] := '{}';
  truncated text[] := '{}';
  made text[] := '{}';
  rotated text[] := '{}';
  put_off text[] := '{}';
  here integer;
  own xid8;
  u concord_internal.upkeep;
  blank record;
  l record;
  doomed concord_internal.doomed_leaf[];
  d concord_internal.doomed_leaf;
  trouble text;
  width bigint;
  planned bigint;                        -- where the ranges of this epoch end
  name text;
begin
  if not concord_internal.is_service() then
    perform concord_internal.fail('forbidden', null,
      'only a superuser, the owner of the database, or a member of concord_service named by concord.trust_login() may call maintain');
  end if;
  if pg_is_in_recovery() or current_setting('transaction_read_only')::boolean then
    perform concord_internal.fail('invalid_request', null, 'maintain writes: not on a standby, nor in a READ ONLY transaction');
  end if;
  perform set_config('lock_timeout', concord_internal.setting('maintain_lock_timeout'), true);
  if not pg_try_advisory_xact_lock(hashtextextended('concord maintain', 0)) then
    return '{"pruned": {}, "announced": [], "truncated": [], "made": [], "rotated": [],
             "put_off": ["everything: another maintain is running"]}';
  end if;
  here := concord_internal.epoch();
  own := pg_current_xact_id();
  select * into u from concord_internal.upkeep;
  if u.epoch is distinct from here then
    u.blanked_to := '0';                 -- ids may have begun anew
  end if;

  blank := concord_internal.blank_receipts(u);
  u := blank.u;
  pruned := jsonb_build_object('receipts', blank.blanked, 'commits', concord_internal.prune_commits(),
                               'held', concord_internal.prune_held(), 'models', concord_internal.prune_models());
  perform concord_internal.prune_protections();
  perform concord_internal.prune_packs();

  -- What autovacuum has not brought into deltas_feed yet. No matter if it is busy with that just now.
  for l in
    select i.indexrelid::regclass as index
      from concord_internal.leaves() f
      join pg_index i on i.indrelid = f.leaf
      join pg_class c on c.oid = i.indexrelid and c.relam = (select oid from pg_am where amname = 'brin')
  loop
    begin
      perform brin_summarize_new_values(l.index);
    exception when lock_not_available or deadlock_detected then
      null;
    end;
  end loop;

  -- Retention: what was announced is cut when nobody can be relying on it; what else is old enough is announced.
  if u.announced_by <> own then
    u.watched := concord_internal.wait_for_transactions(coalesce(u.watched, concord_internal.transactions_here()));
  end if;
  if u.announced_by = own then
    null;  -- called twice in one transaction: nobody has seen the new floor yet
  elsif u.watched <> '{}' then
    put_off := put_off || format('truncate: %s transactions have not ended that were there when it was announced', cardinality(u.watched));
  else
    doomed := array(select f from concord_internal.doomed_leaves() f);
    foreach d in array doomed loop
      continue when not concord_internal.is_below_floor(d);
      trouble := concord_internal.cut_leaf(d.leaf);
      if trouble is null then
        truncated := truncated || d.leaf::text;
      else
        put_off := put_off || trouble;
      end if;
    end loop;
    u.watched := null;
    u.announced_by := null;
    foreach d in array array(select x from unnest(doomed) x where not concord_internal.is_below_floor(x)) loop
      perform concord_internal.raise_floor(d);
      announced := announced || d.leaf::text;
      u.announced_by := own;
    end loop;
  end if;

  -- One leaf's width ahead, at least.
  width := concord_internal.leaf_width(u, own);
  if u.epoch is distinct from here then
    u.epoch := here;
    u.planned_xid := own;
    u.planned_at := clock_timestamp();
  end if;
  loop
    planned := (select max(f.to_xid::text::bigint) from concord_internal.leaves() f where f.epoch = here);
    exit when planned - width >= own::text::bigint;
    if planned is null or planned <= own::text::bigint then
      planned := own::text::bigint + least(10000, greatest(100, width / 10));
    end if;
    trouble := 'make a leaf: there are enough, and none is empty';
    name := (select c.relname from concord_internal.leaves() f join pg_class c on c.oid = f.leaf
              where f.epoch is not null and concord_internal.leaf_is_empty(f.leaf)
                and (f.epoch <> here or f.to_xid <= own) and concord_internal.range_is_closed(f.epoch, f.from_xid, f.to_xid)
              order by f.epoch, f.from_xid limit 1);
    if name is not null then
      trouble := concord_internal.rotate_leaf(name, here, planned, planned + width);
      if trouble is null then
        rotated := rotated || name;
      end if;
    end if;
    if trouble is not null and (select count(*) from concord_internal.leaves()) < most_leaves then
      name := (select 'deltas_' || min(k) from generate_series(1, most_leaves) k
                where to_regclass('concord_internal.deltas_' || k) is null);
      trouble := concord_internal.make_leaf(name, here, planned, planned + width);
      if trouble is null then
        made := made || name;
      end if;
    end if;
    if trouble is not null then
      put_off := put_off || trouble;
      exit;
    end if;
    u.planned_xid := own;
    u.planned_at := clock_timestamp();
  end loop;

  insert into concord_internal.upkeep as x values (true, clock_timestamp(), u.epoch, u.planned_xid, u.planned_at, u.blanked_to,
                                                     u.announced_by, u.watched)
      on conflict (only_one) do update set maintained_at = excluded.maintained_at, epoch = excluded.epoch,
         planned_xid = excluded.planned_xid, planned_at = excluded.planned_at, blanked_to = excluded.blanked_to,
         announced_by = excluded.announced_by, watched = excluded.watched;
  return jsonb_build_object('pruned', pruned, 'announced', announced, 'truncated', truncated, 'made', made, 'rotated', rotated,
                            'put_off', put_off);
end
$$;
comment on function concord.maintain() is
  'What has to be done now and then: cuts the log past retention, keeps leaves ready for it, blanks receipts past
idempotency_retention, prunes commits and held operations past retention, and models whose table was dropped. Call it by
itself, every ten minutes or so, from cron; its locks last until the transaction ends. Each wait is bounded by
maintain_lock_timeout, and late or missing maintenance never breaks a write. Returns a report:
{"pruned": {"receipts", "commits", "held", "models"}, "announced": [leaves: older tokens are token_expired from now on],
"truncated": [leaves: announced before, empty now], "made": [leaves], "rotated": [leaves], "put_off": [what could not be had
now, and why]}. The log is so cut in two calls: the second empties what the first announced.
A superuser, the owner of the database, or a login trusted by concord.trust_login(). Errors: forbidden, invalid_request.';

select concord_internal.open_to('concord.maintain()', 'public');
