-- Where a consumer of the feed stands.
--
-- The feed is cut into batches, each between two snapshots: the deltas that `base` had not seen and `target` has (PgQ's
-- batch query). A delta is in exactly one batch of a chain in which each target is the next base, whenever its transaction
-- ended, and however long it ran: it is in the batch in which it turns from unseen to seen. What a snapshot has seen of
-- one row is a prefix of the row's deltas by seq, so batch after batch, and by seq inside one, gives each row's changes in
-- their order. A position is a target, or, inside a batch, its base, its target and the last seq delivered:
--
--   kcf1.<epoch identity>.<target>.<checksum>                            all that the target has seen
--   kcf1.<epoch identity>.<target>.<seq>.<base>.<checksum>               of the batch, up to seq
--
-- with snapshots as xmin:xmax:xip,…; a base is a snapshot with the own entries of a read token (…/xid@seq,…), or a number
-- where the feed was begun from null: the log_cut at that time.
--
-- What could lose a delta, and why it doesn't:
--   in flight   a target counts nothing as seen that had not ended, and the consumer's own transaction neither (the server
--               leaves the own id out of the list; it is put in). Prepared transactions are in the list until they end.
--   crash, restore   ids are used again, and what a consumer saw last may not have survived: a position of another epoch is
--               token_foreign. Deltas of former epochs count as seen unless their id is in the list, as in every token.
--               The epoch is read before the snapshot: one that begins in between makes the position foreign.
--   retention   what was cut is below the floor by transaction, and at or below log_cut by seq. A position is token_expired
--               when its base may have missed something below the floor, unless it is already past log_cut, and what it
--               missed was delivered. Floor and log_cut are raised before a leaf is emptied, and it is emptied only when
--               every transaction has ended that may have read them as they were (70_upkeep/20_cut).
--   rights      a change that the caller may not see when its page is read is passed over, and not shown later either.
-- The greatest delta number that retention has taken away; no row before it first did.
create table concord_internal.log_cut (
  only_one boolean primary key default true check (only_one),
  seq bigint not null
);

create function concord_internal.log_cut()
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((select c.seq from concord_internal.log_cut c), 0);
end
$$;

create type concord_internal.feed_position as (
  problem text,                          -- null, or an error code
  base concord_internal.token,           -- problem is not used here
  cut bigint,                            -- begun from null: base is null, and this is log_cut at that time
  target concord_internal.token,         -- null between batches
  seq bigint                             -- delivered of the batch
);

create function concord_internal.snapshot_text(t concord_internal.token)
returns text
language sql
immutable
return t.xmin::text || ':' || t.xmax::text || ':' || array_to_string(t.xip, ',');

create function concord_internal.checksum(body text)
returns text
language sql
immutable
return lpad(to_hex(hashtextextended(body, 0)), 16, '0');

-- xmin:xmax:xip,…[/xid@seq,…] as a token of this epoch; null when it is none.
create function concord_internal.parse_seen(given text, epoch integer)
returns concord_internal.token
language plpgsql
immutable
as $$
declare
  t concord_internal.token;
  seen pg_snapshot;
begin
  if given !~ '^\d{1,19}:\d{1,19}:(\d{1,19}(,\d{1,19})*)?(/\d{1,19}@\d{1,18}(,\d{1,19}@\d{1,18})*)?$' then
    return null;
  end if;
  begin
    seen := split_part(given, '/', 1)::pg_snapshot;
  exception when data_exception then
    return null;
  end;
  t.epoch := epoch;
  t.xmin := pg_snapshot_xmin(seen);
  t.xmax := pg_snapshot_xmax(seen);
  t.xip := array(select pg_snapshot_xip(seen));
  t.own_xids := array(select split_part(o, '@', 1)::xid8 from regexp_split_to_table(nullif(split_part(given, '/', 2), ''), ',') with ordinality x(o, n) order by n);
  t.own_seqs := array(select split_part(o, '@', 2)::bigint from regexp_split_to_table(nullif(split_part(given, '/', 2), ''), ',') with ordinality x(o, n) order by n);
  return t;
end
$$;

-- What follows the epoch identity in a position inside a batch, without seq: computed once for a page.
create function concord_internal.base_text(p concord_internal.feed_position)
returns text
language sql
immutable
return case when p.cut is not null then p.cut::text
            else concord_internal.snapshot_text(p.base) ||
                 case when (p.base).own_xids <> '{}'
                      then '/' || (select string_agg(x::text || '@' || s::text, ',') from unnest((p.base).own_xids, (p.base).own_seqs) o(x, s))
                      else '' end end;

create function concord_internal.parse_position(since text, identity bigint, epoch integer)
returns concord_internal.feed_position
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  part constant text[] := string_to_array(since, '.');
  parts constant integer := coalesce(array_length(part, 1), 0);
  p concord_internal.feed_position;
  t concord_internal.token;
begin
  if since is null then
    p.cut := concord_internal.log_cut();
    return p;
  end if;
  if left(since, 4) = 'kc1.' then
    t := concord_internal.parse_token(since);
    p.problem := t.problem;
    t.problem := null;
    p.base := t;
    return p;
  end if;

  p.problem := 'token_invalid';
  if parts not in (4, 6) or part[1] <> 'kcf1' or length(since) > 200000
     or part[parts] <> concord_internal.checksum(left(since, -17)) then
    return p;
  end if;
  if part[2] <> to_hex(identity) then
    p.problem := case when part[2] ~ '^[0-9a-f]{1,16}$' then 'token_foreign' else 'token_invalid' end;
    return p;
  end if;
  t := concord_internal.parse_seen(part[3], epoch);
  if t.xmax is null then
    return p;
  end if;
  if parts = 4 then
    p.base := t;
  else
    p.target := t;
    if part[4] !~ '^\d{1,18}$' then
      return p;
    end if;
    p.seq := part[4]::bigint;
    if part[5] ~ '^\d{1,18}$' then
      p.cut := part[5]::bigint;
    else
      p.base := concord_internal.parse_seen(part[5], epoch);
      if (p.base).xmax is null then
        return p;
      end if;
    end if;
  end if;
  p.problem := case when t.xmax > pg_snapshot_xmax(pg_current_snapshot()) then 'token_foreign' end;
  return p;
end
$$;

-- Was something taken out of the log that this position still has to deliver?
create function concord_internal.position_expired(p concord_internal.feed_position)
returns boolean
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  cut constant bigint := concord_internal.log_cut();
begin
  if cut <= coalesce(p.seq, 0) then
    return false;
  elsif p.cut is not null then
    return cut > p.cut;
  end if;
  return exists (select from concord_internal.log_floor f where f.epoch >= (p.base).epoch and (p.base).xmin < f.xid);
end
$$;

select concord_internal.open_to('concord_internal.log_cut()');
select concord_internal.open_to('concord_internal.snapshot_text(concord_internal.token)');
select concord_internal.open_to('concord_internal.checksum(text)');
select concord_internal.open_to('concord_internal.parse_seen(text,integer)');
select concord_internal.open_to('concord_internal.base_text(concord_internal.feed_position)');
select concord_internal.open_to('concord_internal.parse_position(text,bigint,integer)');
select concord_internal.open_to('concord_internal.position_expired(concord_internal.feed_position)');
