-- A token is what its reader had seen: a snapshot, and of own transactions a prefix by delta number.
--
--   kc1.<epoch identity>.<xmin:xmax:xip,...>[.<xid>@<last seq>,...].<checksum>
--
-- A delta is unseen by a token when  (xid >= xmax or xid = any(xip))  and it is not one of its own.
-- The checksum is no secret and guards against accidents, above all a snapshot cut at a comma, which is still a valid
-- snapshot. A token that its bearer forges says only that the bearer has seen what it has not: it harms nobody else.
create type concord_internal.token as (
  problem text,               -- null, or the error code that answers for the whole token
  epoch integer,              -- the ordinal of its epoch, which is the current one
  xmin xid8, xmax xid8, xip xid8[],
  own_xids xid8[], own_seqs bigint[]
);

create function concord_internal.format_token(seen pg_snapshot, own_xids xid8[], own_seqs bigint[])
returns text
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  body text := 'kc1.' || to_hex(concord_internal.epoch_identity()) || '.' || seen::text;
begin
  if own_xids <> '{}' then
    body := body || '.' || (select string_agg(x::text || '@' || s::text, ',' order by i)
                              from unnest(own_xids, own_seqs) with ordinality o(x, s, i));
  end if;
  return body || '.' || lpad(to_hex(hashtextextended(body, 0)), 16, '0');
end
$$;

create function concord_internal.parse_token(given text)
returns concord_internal.token
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  part constant text[] := string_to_array(given, '.');
  parts constant integer := coalesce(array_length(part, 1), 0);
  body constant text := left(given, -17);
  now_seen constant pg_snapshot := pg_current_snapshot();
  seen pg_snapshot;
  t concord_internal.token;
  own text;
begin
  t.problem := 'token_invalid';
  if parts not in (4, 5) or part[1] <> 'kc1' or length(given) > 100000
     or part[parts] <> lpad(to_hex(hashtextextended(body, 0)), 16, '0') then
    return t;
  end if;
  if part[2] <> to_hex(concord_internal.epoch_identity()) then
    t.problem := case when part[2] ~ '^[0-9a-f]{1,16}$' then 'token_foreign' else 'token_invalid' end;
    return t;
  end if;
  t.epoch := concord_internal.epoch();
  t.own_xids := '{}';
  t.own_seqs := '{}';
  begin  -- no xid is taken: nothing is written inside
    seen := part[3]::pg_snapshot;
    if parts = 5 then
      foreach own in array string_to_array(part[4], ',') loop
        t.own_xids := t.own_xids || split_part(own, '@', 1)::xid8;
        t.own_seqs := t.own_seqs || split_part(own, '@', 2)::bigint;
      end loop;
    end if;
  exception when data_exception then
    return t;
  end;
  if seen::text <> part[3] then
    return t;
  end if;
  t.xmin := pg_snapshot_xmin(seen);
  t.xmax := pg_snapshot_xmax(seen);
  t.xip := array(select pg_snapshot_xip(seen));
  -- The own transaction's id may be at or beyond this snapshot's xmax: nobody else has ended since.
  if t.xmax > pg_snapshot_xmax(now_seen)
     or exists (select from unnest(t.own_xids) x
                 where x >= pg_snapshot_xmax(now_seen) and x is distinct from pg_current_xact_id_if_assigned()) then
    t.problem := 'token_foreign';
  elsif exists (select from concord_internal.log_floor f where f.epoch = t.epoch and t.xmin < f.xid) then
    t.problem := 'token_expired';
  else
    t.problem := null;
  end if;
  return t;
end
$$;

-- Has the bearer seen this delta? (Whatever epoch: a transaction prepared before a crash may still be in progress.)
create function concord_internal.has_seen(t concord_internal.token, epoch integer, xid xid8, seq bigint)
returns boolean
language plpgsql
immutable
as $$
declare
  own integer;
begin
  if not (epoch = t.epoch and xid >= t.xmax or xid = any (t.xip)) then
    return true;
  end if;
  own := array_position(t.own_xids, xid);
  return own is not null and seq <= t.own_seqs[own];
end
$$;

-- What two tokens have both seen. Own entries stay where the other side has seen them too, by snapshot or as its own.
create function concord_internal.intersect_tokens(a concord_internal.token, b concord_internal.token)
returns concord_internal.token
language plpgsql
immutable
as $$
declare
  t concord_internal.token;
  own record;
begin
  t.epoch := a.epoch;
  t.xmin := least(a.xmin, b.xmin);
  t.xmax := least(a.xmax, b.xmax);
  t.xip := array(select x from unnest(a.xip || b.xip) x where x < t.xmax group by x order by x);
  t.own_xids := '{}';
  t.own_seqs := '{}';
  for own in
    with side as (
      select 1 as n, x, s from unnest(a.own_xids, a.own_seqs) u(x, s)
      union all
      select 2, x, s from unnest(b.own_xids, b.own_seqs) u(x, s))
    select x, case when count(*) = 2 then min(s)
                   when min(n) = 1 and x < b.xmax and x <> all (b.xip) then min(s)
                   when min(n) = 2 and x < a.xmax and x <> all (a.xip) then min(s) end as s
      from side group by x order by min(s)
  loop
    if own.s is not null then
      t.own_xids := t.own_xids || own.x;
      t.own_seqs := t.own_seqs || own.s;
    end if;
  end loop;
  return t;
end
$$;

-- As text, with one more own entry; the oldest beyond 256 fall off (they count as unseen again, which is safe).
create function concord_internal.extend_token(t concord_internal.token, own_xid xid8, own_seq bigint)
returns text
language plpgsql
as $$
declare
  at_own integer := array_position(t.own_xids, own_xid);
  surplus integer;
begin
  if own_xid is not null then
    if at_own is null then
      t.own_xids := t.own_xids || own_xid;
      t.own_seqs := t.own_seqs || own_seq;
    else
      t.own_seqs[at_own] := greatest(t.own_seqs[at_own], own_seq);
    end if;
  end if;
  surplus := coalesce(array_length(t.own_xids, 1), 0) - 256;
  if surplus > 0 then
    t.own_xids := t.own_xids[surplus + 1:];
    t.own_seqs := t.own_seqs[surplus + 1:];
  end if;
  return concord_internal.format_token(
    (t.xmin::text || ':' || t.xmax::text || ':' || array_to_string(t.xip, ','))::pg_snapshot, t.own_xids, t.own_seqs);
end
$$;

-- The newest delta number that this transaction can have drawn; later ones are greater.
create function concord_internal.last_delta_seq()
returns bigint
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(pg_sequence_last_value('concord_internal.delta_seq'), 0);
end
$$;

-- STABLE on purpose: it then uses the snapshot of the statement that reads, and stamps a long SELECT with what its rows
-- show. VOLATILE would take a later one, and count as seen what the rows do not show.
create function concord.capture()
returns text
language plpgsql
stable
as $$
declare
  own xid8 := pg_current_xact_id_if_assigned();
begin
  if own is null then
    return concord_internal.format_token(pg_current_snapshot(), '{}', '{}');
  end if;
  return concord_internal.format_token(pg_current_snapshot(), array[own], array[concord_internal.last_delta_seq()]);
end
$$;
comment on function concord.capture() is
  'A read token: what this statement sees, and what this transaction has written itself. Call it in the statement that
reads, or before it; pass it back as readAt. In REPEATABLE READ it stands for the transaction''s snapshot.
Errors: invalid_request (on a standby; or READ ONLY just after a crash, when a new epoch has to be drawn first).';

select concord_internal.open_to('concord_internal.format_token(pg_snapshot,xid8[],bigint[])', 'concord_app');
select concord_internal.open_to('concord_internal.parse_token(text)', 'concord_app');
select concord_internal.open_to('concord_internal.has_seen(concord_internal.token,integer,xid8,bigint)', 'concord_app');
select concord_internal.open_to('concord_internal.intersect_tokens(concord_internal.token,concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.extend_token(concord_internal.token,xid8,bigint)', 'concord_app');
select concord_internal.open_to('concord_internal.last_delta_seq()', 'concord_app');
select concord_internal.open_to('concord.capture()', 'concord_app');
