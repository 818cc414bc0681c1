-- A token is what its reader had seen: a snapshot, and of own transactions a prefix by delta number.
--
--   kc1.<epoch identity>.<xmin:xmax:xip,...>[.<xid>@<last seq>,...].<checksum>
--
-- A delta is unseen by a token when  (xid >= xmax or xid = any(xip))  and it is not one of its own.
-- The checksum is no secret and guards against accidents, above all a snapshot cut at a comma, which is still a valid
-- snapshot. A token that its bearer forges says only that the bearer has seen what it has not: it harms nobody else.
create type concord_internal.token as (
  problem text,               -- null, or the error code that answers for the whole token
  identity bigint, epoch integer,  -- of its epoch, which is the current one
  xmin xid8, xmax xid8, xip xid8[],
  own_xids xid8[], own_seqs bigint[]
);

-- own: '' or 'xid@seq,...'.
create function concord_internal.format_token(identity bigint, seen text, own text)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  body constant text := 'kc1.' || to_hex(identity) || '.' || seen || case when own <> '' then '.' || own else '' end;
begin
  return body || '.' || lpad(to_hex(hashtextextended(body, 0)), 16, '0');
end
$$;

-- Numbers of at most 18 digits, which xid8 and bigint both hold? (No regular expression: it takes longer than all the rest.)
create function concord_internal.are_numbers(variadic given text[])
returns boolean
language sql
immutable
return translate(array_to_string(given, ''), '0123456789', '') = '' and not (18 < any (array(select length(g) from unnest(given) g)) or '' = any (given));

create function concord_internal.parse_token(given text)
returns concord_internal.token
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  part constant text[] := string_to_array(given, '.');
  parts constant integer := coalesce(cardinality(part), 0);
  seen constant text[] := string_to_array(part[3], ':');
  own text;
  t concord_internal.token;
begin
  -- What the casts below take is asked first: a block that catches what they raise would cost a subtransaction.
  if parts not in (4, 5) or part[1] <> 'kc1' or length(given) > 100000
     or part[parts] <> lpad(to_hex(hashtextextended(left(given, -17), 0)), 16, '0')
     or cardinality(seen) <> 3 or translate(seen[1] || seen[2], '0123456789', '') <> ''
     or length(seen[1]) not between 1 and 18 or length(seen[2]) not between 1 and 18
     or seen[3] <> '' and not concord_internal.are_numbers(variadic string_to_array(seen[3], ','))
     or parts = 5 and (length(part[4]) > 40000 or not concord_internal.are_numbers(variadic regexp_split_to_array(part[4], '[@,]'))) then
    t.problem := 'token_invalid';
    return t;
  end if;
  t := row(null, concord_internal.epoch_identity(), pg_sequence_last_value('concord_internal.epoch_ordinal'), seen[1], seen[2],
           string_to_array(seen[3], ','), '{}', '{}');
  if part[2] <> to_hex(t.identity) then
    t.problem := 'token_foreign';
    return t;
  elsif parts = 5 then
    foreach own in array string_to_array(part[4], ',') loop
      t.own_xids := t.own_xids || split_part(own, '@', 1)::xid8;
      t.own_seqs := t.own_seqs || coalesce(nullif(split_part(own, '@', 2), '')::bigint, 0);
    end loop;
  end if;
  -- The own transaction's id may be at or beyond this snapshot's xmax: nobody else has ended since.
  if t.xmax > pg_snapshot_xmax(pg_current_snapshot())
     or (parts = 5 and exists (select from unnest(t.own_xids) x
           where x >= pg_snapshot_xmax(pg_current_snapshot()) and x is distinct from pg_current_xact_id_if_assigned())) then
    t.problem := 'token_foreign';
  elsif exists (select from concord_internal.log_floor f where f.epoch = t.epoch and t.xmin < f.xid) then
    t.problem := 'token_expired';
  end if;
  return t;
end
$$;

-- Has the bearer seen this delta? (Whatever epoch: a transaction prepared before a crash may still be in progress.)
create function concord_internal.has_seen(t concord_internal.token, epoch integer, xid xid8, seq bigint)
returns boolean
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
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
  t.identity := a.identity;
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
stable
as $$
begin
  return concord_internal.format_token(t.identity, t.xmin::text || ':' || t.xmax::text || ':' || array_to_string(t.xip, ','),
    case when t.own_xids = '{}' then coalesce(own_xid::text || '@' || own_seq::text, '')
         else concord_internal.own_entries(t, own_xid, own_seq) end);
end
$$;

create function concord_internal.own_entries(t concord_internal.token, own_xid xid8, own_seq bigint)
returns text
language sql
immutable
as $$
  select coalesce(string_agg(x::text || '@' || s::text, ',' order by i), '')
    from (select x, max(s) as s, max(i) as i
            from (select x, s, i from unnest(t.own_xids, t.own_seqs) with ordinality u(x, s, i)
                  union all
                  select own_xid, own_seq, 1000000 where own_xid is not null) e
           group by x order by max(i) desc limit 256) kept
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

-- A snapshot never lists its own transaction as in progress. Once a younger one has ended, it would count all of the own
-- one as seen, later statements too. So the own id is listed, and the own entry says how much of it was seen.
create function concord_internal.snapshot_without(seen pg_snapshot, own xid8)
returns text
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if own is null or own >= pg_snapshot_xmax(seen) then
    return seen::text;
  end if;
  return least(own, pg_snapshot_xmin(seen))::text || ':' || pg_snapshot_xmax(seen)::text || ':'
      || (select string_agg(x::text, ',' order by x) from (select pg_snapshot_xip(seen) union select own) u(x));
end
$$;

-- The epoch's identity for a snapshot; 40001 for one from before the epoch began.
create function concord_internal.current_identity(xmin xid8)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  identity constant bigint := concord_internal.epoch_identity();
begin
  if xmin::text::bigint < coalesce(pg_sequence_last_value('concord_internal.epoch_start'), 0) then
    raise serialization_failure using message = 'a new epoch began after this snapshot was taken: try again';
  end if;
  return identity;
end
$$;

-- STABLE on purpose: it then uses the snapshot of the statement that reads, and stamps a long SELECT with what its rows
-- show. VOLATILE would take a later one, and count as seen what the rows do not show.
create function concord.capture()
returns text
language plpgsql
stable
as $$
begin
  return concord_internal.format_token(concord_internal.current_identity(pg_snapshot_xmin(pg_current_snapshot())),
    concord_internal.snapshot_without(pg_current_snapshot(), pg_current_xact_id_if_assigned()),
    coalesce(pg_current_xact_id_if_assigned()::text || '@' || concord_internal.last_delta_seq()::text, ''));
end
$$;
comment on function concord.capture() is
  'A read token: what this statement sees, and what this transaction has written itself. Call it in the statement that
reads, or before it; pass it back as readAt. In REPEATABLE READ it stands for the transaction''s snapshot.
Errors: invalid_request (on a standby; or READ ONLY just after a crash, when a new epoch has to be drawn first).';

select concord_internal.open_to('concord_internal.format_token(bigint,text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.snapshot_without(pg_snapshot,xid8)', 'concord_app');
select concord_internal.open_to('concord_internal.current_identity(xid8)', 'concord_app');
select concord_internal.open_to('concord_internal.own_entries(concord_internal.token,xid8,bigint)', 'concord_app');
select concord_internal.open_to('concord_internal.are_numbers(text[])');
select concord_internal.open_to('concord_internal.parse_token(text)', 'concord_app');
select concord_internal.open_to('concord_internal.has_seen(concord_internal.token,integer,xid8,bigint)', 'concord_app');
select concord_internal.open_to('concord_internal.intersect_tokens(concord_internal.token,concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.extend_token(concord_internal.token,xid8,bigint)', 'concord_app');
select concord_internal.open_to('concord_internal.last_delta_seq()', 'concord_app');
select concord_internal.open_to('concord.capture()', 'concord_app');
