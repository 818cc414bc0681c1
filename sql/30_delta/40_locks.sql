-- Advisory transaction locks: what commits wait on where no row lock reaches (rows that don't exist, groups, premises).
-- Keys are 64-bit hashes. Two things that share one wait for each other without need, and nothing else happens.
-- Rows and absences: exclusive for the writer, shared for a premise. Groups the other way round, so that writers of one
-- group do not wait for each other. A large batch takes its tenant exclusively instead, which every commit shares.
--
-- A row goes by model and key alone: the model's key is unique over all tenants, and a writer need not know whose row it is.
create function concord_internal.row_lock(model integer, key text)
returns bigint
language sql
immutable
parallel safe
return hashtextextended(key, model::bigint);

create function concord_internal.group_lock(tenant text, grp text)
returns bigint
language sql
immutable
parallel safe
return hashtextextended(grp, hashtextextended(tenant, -1));

create function concord_internal.tenant_lock(tenant text)
returns bigint
language sql
immutable
parallel safe
return hashtextextended(tenant, -2);

-- How many single locks one statement may take: the server's lock table is shared by everybody.
create function concord_internal.most_locks()
returns integer
language sql
immutable
parallel safe
return 1000;

-- May this transaction take so many more single locks? They add up over its commits and over its statements, and when they
-- are too many it takes what every commit shares, exclusively, and needs none of them from there on. Counted in a setting of
-- the transaction; who sets it by hand comes to wait for fewer, as a writer past commit does.
create function concord_internal.may_lock(n integer)
returns boolean
language plpgsql
as $$
declare
  total constant integer := coalesce(nullif(current_setting('concord.locks', true), ''), '0')::integer + n;
begin
  if current_setting('concord.committing', true) = 'all' then
    return false;
  elsif total > 4 * concord_internal.most_locks() then
    perform pg_advisory_xact_lock(concord_internal.tenant_lock('')), set_config('concord.committing', 'all', true);
    return false;
  end if;
  perform set_config('concord.locks', total::text, true);
  return true;
end
$$;

-- Inside a commit: the locks for what a statement changed transaction ends): the locks for what a statement changed, whoever issued it (the commit, a cascade, a user's trigger).
-- Without them write skew passes through cascades and triggers. Those that the commit holds already cost next to nothing. Where the
-- setting is anything else nothing is locked; all is a commit that holds its tenants exclusively, and needs no more.
create function concord_internal.lock_touched(model integer, tenants text[], keys text[], groups text[])
returns void
language plpgsql
as $$
declare
  touched record;
begin
  if cardinality(keys) = 1 then
    perform pg_advisory_xact_lock(concord_internal.row_lock(model, keys[1])), pg_advisory_xact_lock_shared(concord_internal.group_lock(tenants[1], groups[1]));
    return;
  end if;
  if cardinality(keys) <= concord_internal.most_locks() and not concord_internal.may_lock(cardinality(keys)) then
    return;
  elsif cardinality(keys) > concord_internal.most_locks() then
    for touched in select distinct t as tenant from unnest(tenants) t order by t loop
      perform pg_advisory_xact_lock(concord_internal.tenant_lock(touched.tenant));
    end loop;
    return;
  end if;
  for touched in
    select distinct concord_internal.row_lock(model, u.key) as id
      from unnest(keys) u(key) where u.key is not null order by 1
  loop
    perform pg_advisory_xact_lock(touched.id);
  end loop;
  for touched in
    select distinct concord_internal.group_lock(u.tenant, u.grp) as id
      from unnest(tenants, groups) u(tenant, grp) where u.grp is not null order by 1
  loop
    perform pg_advisory_xact_lock_shared(touched.id);
  end loop;
end
$$;

select concord_internal.open_to('concord_internal.row_lock(integer,text)', 'concord_app');
select concord_internal.open_to('concord_internal.group_lock(text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.tenant_lock(text)', 'concord_app');
select concord_internal.open_to('concord_internal.most_locks()', 'concord_app');
select concord_internal.open_to('concord_internal.may_lock(integer)', 'concord_app');
select concord_internal.open_to('concord_internal.lock_touched(integer,text[],text[],text[])');
