-- What can go wrong around the models: trust, grants, functions, leaves, the server's state.
create function concord_internal.pack_findings()
returns setof concord.finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  pack_owner constant oid := (select nspowner from pg_namespace where nspname = 'concord');
  installed text;
  found record;
begin
  select extversion into installed from pg_extension where extname = 'concord';
  if installed <> concord.version() then
    return next row('error', 'version_mixed', null, format('the extension is %s and its functions are %s', installed, concord.version()),
      'alter extension concord update;')::concord.finding;
  end if;

  return query select * from concord_internal.role_findings();
  for found in
    select t.login, to_regrole(quote_ident(t.login)) is null as gone from concord_internal.trusted_logins t
     where to_regrole(quote_ident(t.login)) is null
        or not coalesce(pg_has_role(to_regrole(quote_ident(t.login)), to_regrole('concord_service'), 'member'), false)
     order by t.login
  loop
    return next row('warning', 'trust_lost', null,
      format('login %I is trusted here and %s', found.login, case when found.gone then 'does not exist' else 'is no member of concord_service' end),
      case when found.gone then format('select concord.distrust_login(%L);', found.login)
           else format('grant concord_service to %I; or select concord.distrust_login(%L);', found.login, found.login) end)::concord.finding;
  end loop;

  for found in
    select c.oid::regclass::text as rel, a.grantee, a.privilege_type
      from pg_class c
     cross join lateral (
       select x.grantee, x.privilege_type from aclexplode(c.relacl) x
       union
       select x.grantee, x.privilege_type from pg_attribute t, aclexplode(t.attacl) x where t.attrelid = c.oid) a
     where c.relnamespace = 'concord_internal'::regnamespace and a.grantee <> c.relowner
     order by 1, 2, 3
  loop
    return next row('error', 'table_open', null,
      format('%s has %s on %s', case when found.grantee = 0 then 'everybody' else found.grantee::regrole::text end, found.privilege_type, found.rel),
      format('revoke all on %s from %s;', found.rel, case when found.grantee = 0 then 'public' else found.grantee::regrole::text end))::concord.finding;
  end loop;
  for found in
    select p.oid::regprocedure::text as fn, a.grantee
      from pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
     where p.pronamespace = 'concord_internal'::regnamespace and p.prorettype = 'trigger'::regtype and a.grantee <> p.proowner
       and not exists (select from concord_internal.protections t join pg_class c on c.oid = t.rel  -- see make_stamp_function
                        where p.oid = to_regprocedure(concord_internal.stamp_function(t.id) || '()') and a.grantee = c.relowner)
     order by 1, 2
  loop
    return next row('error', 'function_open', null,
      format('%s may execute %s, and so attach it to a table of its own', case when found.grantee = 0 then 'everybody' else found.grantee::regrole::text end, found.fn),
      format('revoke all on function %s from %s;', found.fn, case when found.grantee = 0 then 'public' else found.grantee::regrole::text end))::concord.finding;
  end loop;
  for found in
    select t.tgname, t.tgrelid::regclass as rel
      from pg_trigger t join pg_proc p on p.oid = t.tgfoid
     where not t.tgisinternal and p.pronamespace = 'concord_internal'::regnamespace and p.proname ~ '^model_[0-9]+_'
       and not exists (select from concord_internal.models m where m.id = split_part(p.proname::text, '_', 2)::integer)
     order by 2, 1
  loop
    return next row('warning', 'trigger_left', null, format('trigger %I on %s is of a model that is gone, and does nothing', found.tgname, found.rel),
      format('drop trigger %I on %s;', found.tgname, found.rel))::concord.finding;
  end loop;
  for found in
    select p.oid::regprocedure::text as fn, p.proowner::regrole::text as owner from pg_proc p
     where p.pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace) and p.proowner <> pack_owner
     order by 1
  loop
    return next row('error', 'owner_changed', null, format('%s belongs to %s', found.fn, found.owner),
      format('alter function %s owner to %s;', found.fn, pack_owner::regrole))::concord.finding;
  end loop;
  for found in
    select p.oid::regprocedure::text as fn from pg_proc p
     where p.pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace) and p.prosecdef
       and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)
     order by 1
  loop
    return next row('error', 'search_path_missing', null, format('%s runs with its owner''s rights on the caller''s search_path', found.fn),
      format('alter function %s set search_path = pg_catalog, pg_temp;', found.fn))::concord.finding;
  end loop;
  for found in
    select c.oid::regclass::text as rel from pg_class c
     where c.relnamespace = 'concord_internal'::regnamespace and c.relkind = 'S' and c.relname like 'epoch\_%'
       and (c.relpersistence = 'u') <> (c.relname <> 'epoch_ordinal')
     order by 1
  loop
    return next row('error', 'epoch_mark', null, format('%s has the wrong persistence: a crash would not be noticed, or epochs would repeat', found.rel),
      format('alter sequence %s set %s;', found.rel,
             case when found.rel like '%epoch_ordinal' then 'logged' else 'unlogged' end))::concord.finding;
  end loop;
end
$$;

-- old_prepared: how long a prepared transaction may stand before it is said.
create function concord_internal.server_findings(old_prepared interval default '1 hour')
returns setof concord.finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  retention constant interval := concord_internal.setting('retention')::interval;
  pattern constant integer := (select count(*) from pg_index where indrelid = 'concord_internal.deltas_default'::regclass);
  maintained_at constant timestamptz := (select u.maintained_at from concord_internal.upkeep u);
  oldest constant timestamptz := concord_internal.oldest_delta();
  found record;
begin
  if current_setting('session_replication_role') = 'replica' then
    return next row('error', 'replica_mode', null, 'session_replication_role is replica in this session: no trigger fires, nothing is logged',
      'set session_replication_role = origin;')::concord.finding;
  end if;
  for found in
    select coalesce('role ' || s.setrole::regrole::text, 'every role') as who from pg_db_role_setting s
     where s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
       and 'session_replication_role=replica' = any (s.setconfig)
     order by 1
  loop
    return next row('error', 'replica_mode', null, format('session_replication_role is set to replica for %s: its writes are not logged',
        case when found.who = 'role -' then 'every role' else found.who end),
      'alter role … (or alter database …) reset session_replication_role;')::concord.finding;
  end loop;

  for found in
    select p.gid, p.prepared from pg_prepared_xacts p
     where p.database = current_database() and p.prepared < clock_timestamp() - old_prepared order by p.gid
  loop
    return next row('warning', 'prepared_old', null,
      format('transaction %L has been prepared since %s: what it changed is in no reader''s sight, its locks stand, and the log can''t be cut past it',
             found.gid, to_char(found.prepared at time zone 'UTC', 'YYYY-MM-DD HH24:MI"Z"')),
      format('commit prepared %L; or rollback prepared %L;', found.gid, found.gid))::concord.finding;
  end loop;

  if concord_internal.setting('notify') = 'on'
     and not exists (select from pg_trigger where tgrelid = 'concord_internal.deltas'::regclass and tgname = 'concord_wake_up') then
    return next row('warning', 'notify_lost', null, 'notify is on, and nobody is notified: the trigger for it was not restored',
      'select concord.configure(''notify'', ''on'');')::concord.finding;
  end if;

  for found in select l.leaf from concord_internal.leaves() l loop
    if (select count(*) from pg_index where indrelid = found.leaf and indisvalid) < pattern then
      return next row('warning', 'leaf_index_missing', null, format('%s lacks an index of the log: checks read all of it', found.leaf),
        format('create on %s the indexes that concord_internal.deltas_default has', found.leaf))::concord.finding;
    end if;
  end loop;
  if oldest < clock_timestamp() - interval '1 day' and coalesce(maintained_at, '-infinity') < clock_timestamp() - interval '1 day' then
    return next row('warning', 'maintenance_late', null,
      case when maintained_at is null then 'concord.maintain() has never run'
           else format('concord.maintain() last ran at %s', to_char(maintained_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI"Z"')) end,
      'select concord.maintain(); and have it called every ten minutes, from cron')::concord.finding;
  elsif (select l.to_xid <= pg_snapshot_xmax(pg_current_snapshot()) from concord_internal.leaves() l
          where l.epoch = pg_sequence_last_value('concord_internal.epoch_ordinal') order by l.from_xid desc limit 1) then
    return next row('warning', 'leaves_overtaken', null, 'no leaf is ready for what is written now: it goes into the default leaf',
      'select concord.maintain(); and have it called more often, or see in what it returns what it put off')::concord.finding;
  end if;
  if oldest < clock_timestamp() - 2 * retention - interval '1 day' then
    return next row('warning', 'retention_behind', null,
      format('the log reaches back to %s; retention is %s', to_char(oldest at time zone 'UTC', 'YYYY-MM-DD'), concord_internal.setting('retention')),
      'see in what concord.maintain() returns what it put off: a long transaction, or a prepared one, may be in its way')::concord.finding;
  end if;
end
$$;

select concord_internal.open_to('concord_internal.pack_findings()');
select concord_internal.open_to('concord_internal.server_findings(interval)');
