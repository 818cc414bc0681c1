-- The deltas of one batch in a window of seq, in no order, at most `most`. The window and the transaction ids are looked up
-- in deltas_feed, and (epoch, xid) prunes the leaves, so that a page reads what it shows and little more. (The function
-- that calls this switches sequential scans off, since the planner can't know how well the log is in order.)
-- From the ids in the base's list only those need looking up that had ended by the target.
create function concord_internal.batch(base concord_internal.token, target concord_internal.token, after bigint, upto bigint,
                                       tenant text, all_tenants boolean, most integer)
returns setof concord_internal.deltas
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_generic_plan
as $$
declare
  ended xid8[];
begin
  if base.xmax is null then
    return query
      select d.* from concord_internal.deltas d
       where d.seq > after and d.seq <= upto and d.op <> 'g'
         and (all_tenants or d.tenant = batch.tenant or d.tenant = '' or d.key is null)
         and (d.epoch < target.epoch or (d.epoch = target.epoch and d.xid < target.xmax)) and d.xid <> all (target.xip)
       limit most;
    return;
  end if;
  ended := array(select x from unnest(base.xip) x where x < target.xmax and x <> all (target.xip));
  return query
    select u.* from (
      select d.* from concord_internal.deltas d
       where d.epoch = base.epoch and d.xid >= base.xmax and d.xid < target.xmax
         and d.xid::text::bigint >= base.xmax::text::bigint
         and d.seq > after and d.seq <= upto
      union all
      select d.* from unnest(ended) x, concord_internal.deltas d
       where d.epoch = base.epoch and d.xid = x and d.xid::text::bigint = x::text::bigint
         and d.seq > after and d.seq <= upto
      union all
      select d.* from unnest(ended) x, concord_internal.deltas d
       where d.epoch < base.epoch and d.xid = x and d.xid::text::bigint = x::text::bigint
         and d.seq > after and d.seq <= upto) u
     where u.op <> 'g' and u.xid <> all (target.xip)
       and (all_tenants or u.tenant = batch.tenant or u.tenant = '' or u.key is null)
       and not exists (select from unnest(base.own_xids, base.own_seqs) o(x, s) where o.x = u.xid and u.seq <= o.s)
     limit most;
end
$$;

-- This moment as a target.
create function concord_internal.target_now(epoch integer)
returns concord_internal.token
language plpgsql
volatile
as $$
declare
  now_seen constant pg_snapshot := pg_current_snapshot();
  own constant xid8 := pg_current_xact_id_if_assigned();
  t concord_internal.token;
begin
  t.epoch := epoch;
  t.xmin := pg_snapshot_xmin(now_seen);
  t.xmax := pg_snapshot_xmax(now_seen);
  t.xip := array(select x from (select pg_snapshot_xip(now_seen) union select own) u(x) where x < t.xmax order by x);
  t.own_xids := '{}';
  t.own_seqs := '{}';
  return t;
end
$$;

-- How a page is found without reading the batch: in windows of seq, narrow enough that a window can't hold more than
-- `reach` deltas, since each number is drawn once. An empty window is followed by one twice as wide. A batch begins with a
-- window over all of it, which is all that a consumer who keeps up ever needs; when that finds more than reach, the lowest
-- number among what it found says where to look.
-- Bounded: each look reads at most reach deltas of the batch and, from ranges of the index that it shares with others, a
-- few more. A page goes on past what the caller may not see until it has something to show; then it stops after 32 reaches,
-- full or not, and the position after its last change is where it stopped looking.
create function concord.changes(since text, max integer default 1000)
returns setof concord.change
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  all_tenants constant boolean := concord_internal.owns_a_model();
  reach constant integer := greatest(least(max, 250000) * 4, 1000);
  -- Before any snapshot: a position of an epoch that ends meanwhile is foreign, and loses nothing.
  identity constant bigint := concord_internal.epoch_identity();
  epoch constant integer := concord_internal.epoch();
  p concord_internal.feed_position;
  at_present boolean := false;           -- the target is this very moment
  last_seq bigint;
  head text;                             -- of positions inside the batch
  tail text;
  width bigint;
  upto bigint;
  lowest bigint;
  looked integer;
  shown integer := 0;
  sights concord_internal.sight[] := '{}';
  sighted integer[] := '{}';
  row_found record;
  d concord_internal.deltas;
  found bigint;
  c concord.change;
  waiting concord.change;                -- found, and not returned yet: its position may still move on
begin
  if coalesce(max, 0) < 1 then
    perform concord_internal.fail('invalid_request', 'max', 'at least 1');
  end if;
  p := concord_internal.parse_position(since, identity, epoch);
  if p.problem is not null then
    perform concord_internal.fail(p.problem, 'since');
  end if;

  loop
    if p.target is null then
      p.target := concord_internal.target_now(epoch);
      p.seq := 0;
      at_present := true;
    end if;
    if concord_internal.position_expired(p) then
      perform concord_internal.fail('token_expired', 'since');
    end if;
    last_seq := concord_internal.last_delta_seq();
    head := 'kcf1.' || to_hex(identity) || '.' || concord_internal.snapshot_text(p.target) || '.';
    tail := '.' || concord_internal.base_text(p);
    width := case when p.seq = 0 then last_seq else reach end;
    looked := 0;

    while p.seq < last_seq loop
      upto := least(p.seq + width, last_seq);
      lowest := null;
      found := 0;
      for row_found in
        select b as delta, count(*) over () as of
          from concord_internal.batch(p.base, p.target, p.seq, upto, who.tenant, all_tenants, reach + 1) b order by b.seq
      loop
        d := row_found.delta;
        lowest := coalesce(lowest, d.seq);
        found := row_found.of;
        exit when found > reach;
        if d.model <> all (sighted) then
          sighted := sighted || d.model;
          sights := sights || concord_internal.sight(d.model);
        end if;
        c := concord_internal.shown(d, sights[array_position(sighted, d.model)], who);
        continue when c.op is null;
        if waiting.op is not null then
          return next waiting;
        end if;
        c.next_token := head || c.sync_id || tail;
        c.next_token := c.next_token || '.' || concord_internal.checksum(c.next_token);
        waiting := c;
        shown := shown + 1;
        exit when shown = max;
      end loop;
      looked := looked + 1;
      if found > reach then
        width := case when lowest < upto then lowest - p.seq else width / 2 end;
        continue;
      end if;
      exit when shown = max;
      p.seq := upto;
      width := case when lowest is null then width * 2 else greatest(width, reach) end;
      if waiting.op is not null and looked >= 32 and p.seq < last_seq then
        waiting.next_token := head || p.seq || tail;
        waiting.next_token := waiting.next_token || '.' || concord_internal.checksum(waiting.next_token);
        shown := max;
        exit;
      end if;
    end loop;

    if shown = max then
      return next waiting;
      return;
    end if;
    p.base := p.target;
    p.target := null;
    p.cut := null;
    exit when at_present;
  end loop;

  if waiting.op is not null then
    return next waiting;
  end if;
  c := null;
  c.op := 'checkpoint';
  c.at := clock_timestamp();
  c.next_token := 'kcf1.' || to_hex(identity) || '.' || concord_internal.snapshot_text(p.base);
  c.next_token := c.next_token || '.' || concord_internal.checksum(c.next_token);
  return next c;
end
$$;
comment on function concord.changes(text, integer) is
  'The changes after a position, oldest first, each exactly once: at most max rows. since: a next_token; a read token (then:
what it had not seen); null: the oldest kept. Every row carries next_token, where the next call goes on; a page that ends
the feed ends with a row of op checkpoint, so that a quiet consumer''s position stays fresh. A full page need not say that
it is the last: go on until a checkpoint comes. Each row''s changes come in their order; over rows, what one transaction
did may be on both sides of a page, and a statement inside a trigger comes before the one that fired it. What the caller may
see is as in concord.history, at the moment of the call; what it may not is passed over for good. In REPEATABLE READ the
feed ends at the transaction''s snapshot. Errors: token_invalid, token_foreign (after a crash or restore: begin anew),
token_expired (the log was cut before this position got there), invalid_request (param: max).';

-- Who owns no tracked table is shown one tenant's deltas at most, and the others need not be looked at one by one.
create function concord_internal.owns_a_model()
returns boolean
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from pg_class c
                  where c.oid in (select m.rel from concord_internal.models m)
                    and pg_has_role(concord_internal.caller(), c.relowner, 'usage'));
end
$$;

select concord_internal.open_to('concord_internal.batch(concord_internal.token,concord_internal.token,bigint,bigint,text,boolean,integer)');
select concord_internal.open_to('concord_internal.target_now(integer)');
select concord_internal.open_to('concord_internal.owns_a_model()');
select concord_internal.open_to('concord.changes(text,integer)', 'concord_app');
