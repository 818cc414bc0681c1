-- Leaves ahead of need. A new range begins where the last one ends; where that was overtaken, a little beyond the present,
-- so that it holds nothing that is in the default already: what is written until then goes to the default.
--
-- Locks, each under maintain_lock_timeout, and what they wait for:
--   make     ATTACH: SHARE UPDATE EXCLUSIVE on the log (no writer minds), ACCESS EXCLUSIVE on the default, which it reads
--            through to make sure that no row belongs into the new range: about 0.1 s for a million. Cheap while the default
--            is as good as empty, which is what keeping a leaf ahead is for. It can't be spared: a CHECK that proves it
--            would refuse the very rows that the default is there for.
--   rotate   an emptied leaf gets a new range: DETACH takes ACCESS EXCLUSIVE on the log, so it waits for everybody. When
--            that is not to be had, another leaf is made, as long as there are not too many.

-- How many ids one leaf should span: as many as are used up in one part of retention. Measured since the newest leaf was
-- planned; until that is long enough to mean something, what was planned then. The first time from the first delta there
-- is, and small if there is none: a leaf too narrow costs one more, a leaf too wide is cut late.
create function concord_internal.leaf_width(u concord_internal.upkeep, own xid8)
returns bigint
language plpgsql
stable
as $$
declare
  here constant integer := concord_internal.epoch();
  part constant double precision := extract(epoch from concord_internal.setting('retention')::interval)
                                    / concord_internal.setting('leaf_count')::integer;
  last_width constant bigint := (select l.to_xid::text::bigint - l.from_xid::text::bigint from concord_internal.leaves() l
                                  where l.epoch = here order by l.from_xid desc limit 1);
  ids double precision;
  seconds double precision;
  first_delta record;
begin
  if u.epoch = here then
    ids := own::text::bigint - u.planned_xid::text::bigint;
    seconds := extract(epoch from clock_timestamp() - u.planned_at);
    if ids < last_width / 10 and seconds < part / 10 then
      return last_width;
    end if;
  else
    select d.xid, d.at into first_delta from concord_internal.deltas_default d where d.epoch = here limit 1;
    ids := own::text::bigint - first_delta.xid::text::bigint;
    seconds := extract(epoch from clock_timestamp() - first_delta.at);
  end if;
  if coalesce(seconds, 0) < 1 then
    return coalesce(last_width, 10000);
  end if;
  return greatest(100, least(1e15, ids / seconds * part))::bigint;
end
$$;

create function concord_internal.attach_leaf(leaf text, epoch integer, from_xid bigint, to_xid bigint)
returns void
language plpgsql
as $$
begin
  execute format('alter table concord_internal.deltas attach partition concord_internal.%I for values from (%s, %L) to (%s, %L)',
                 leaf, epoch, from_xid, epoch, to_xid);
end
$$;

-- Returns null, or why it was put off.
create function concord_internal.make_leaf(leaf text, epoch integer, from_xid bigint, to_xid bigint)
returns text
language plpgsql
as $$
declare
  grantee record;
begin
  execute format('create table concord_internal.%I (like concord_internal.deltas_default including all)', leaf);
  for grantee in  -- whatever default privileges there are
    select distinct a.grantee::regrole as role, a.grantee = 0 as everybody from pg_class c, aclexplode(c.relacl) a
     where c.oid = format('concord_internal.%I', leaf)::regclass and a.grantee <> c.relowner
  loop
    execute format('revoke all on concord_internal.%I from %s', leaf, case when grantee.everybody then 'public' else grantee.role::text end);
  end loop;
  perform concord_internal.attach_leaf(leaf, epoch, from_xid, to_xid);
  return null;
exception
  when lock_not_available or deadlock_detected then
    return format('make %s: the default leaf is in use', leaf);
  when check_violation then
    return format('make %s: ids are used up faster than it can be made', leaf);
end
$$;

create function concord_internal.rotate_leaf(leaf text, epoch integer, from_xid bigint, to_xid bigint)
returns text
language plpgsql
as $$
begin
  execute format('alter table concord_internal.deltas detach partition concord_internal.%I', leaf);
  -- Nobody is writing now, so what is seen to be empty is.
  if not concord_internal.leaf_is_empty(format('concord_internal.%I', leaf)::regclass) then
    raise lock_not_available;
  end if;
  perform concord_internal.attach_leaf(leaf, epoch, from_xid, to_xid);
  return null;
exception
  when lock_not_available or deadlock_detected then
    return format('rotate %s: the log is in use', leaf);
  when check_violation then
    return format('rotate %s: ids are used up faster than it can be made', leaf);
end
$$;

select concord_internal.open_to('concord_internal.leaf_width(concord_internal.upkeep,xid8)');
select concord_internal.open_to('concord_internal.attach_leaf(text,integer,bigint,bigint)');
select concord_internal.open_to('concord_internal.make_leaf(text,integer,bigint,bigint)');
select concord_internal.open_to('concord_internal.rotate_leaf(text,integer,bigint,bigint)');
