-- Epochs: when transaction ids stop meaning what they meant.
--
-- After a crash Postgres may hand out again the ids of transactions that never reached the WAL, so a token from before
-- would count a new write as seen. The same after a restore into another database or cluster. So there is an epoch: a
-- random identity, in tokens, and a rising ordinal, in deltas. It ends when its marks are gone or do not fit.
--
-- The marks are UNLOGGED sequences: reset by crash recovery (also failover, and restore of a base backup), kept by a
-- clean restart, and not transactional, so nobody waits for whoever draws. Three, read without a lock:
--   epoch_mark   the random identity
--   epoch_place  a hash over identity, this sequence's oid and the database's oid  (a dump restored beside or over)
--   epoch_host   a hash over identity and the system identifier                    (a dump restored elsewhere)
-- The drawer sets place and host to what fits the identity and sets the identity last; who reads a mixture finds that
-- place does not fit, and goes the slow way, under a lock. The ordinal is a logged sequence, so that it rises through
-- crashes: a delta that reached the disk was WAL-logged after the nextval that its ordinal came from.
--
-- Triggers look at mark and place alone; the system identifier is left to tokens, and since reading it costs ten times the
-- rest, to the first token after a start of the server: it then leaves a hash over identity and the server's start in
-- epoch_boot, and while that fits nobody reads the identifier again. A copy of the data directory has another start. So
-- where only host does not fit, or somebody asks for a new epoch, writers may be in flight that log the ended ordinal; and
-- the youngest of them is not even in the in-progress list of a token, since xmax is one beyond the newest id that has
-- *ended*. Therefore: mark and place are set first, and host to what never fits, which moves the triggers to the new
-- ordinal and lets no token out; then those in flight are waited for; then host is set. A
-- snapshot from before, in a statement that waited meanwhile or a REPEATABLE READ transaction, gets no token: epoch_start. After a crash, when the marks are
-- gone, there is nobody to wait for: recovery counts every id that was given out as ended, prepared ones as in progress.
-- What breaks it: a cold copy of the data directory, which carries the marks and the system identifier: new_epoch().
create unlogged sequence concord_internal.epoch_mark;
create unlogged sequence concord_internal.epoch_place;
create unlogged sequence concord_internal.epoch_host;
create unlogged sequence concord_internal.epoch_boot;
create unlogged sequence concord_internal.epoch_start;  -- ids below it had ended when the epoch began in place; unset after a crash
create sequence concord_internal.epoch_ordinal;

-- The files of a database lie in base/<its oid>: no lookup needed. Null for a null mark, one that was reset.
create function concord_internal.epoch_place_of(mark bigint)
returns bigint
language sql
stable
return hashtextextended(pg_relation_filepath('concord_internal.epoch_mark'::regclass)::text || 'concord_internal.epoch_mark'::regclass::oid::text, mark) & 9223372036854775806 | 1;

create function concord_internal.epoch_host_of(mark bigint)
returns bigint
language plpgsql
stable
as $$
begin
  return hashint8extended((pg_control_system()).system_identifier, mark) & 9223372036854775806 | 1;
end
$$;

create function concord_internal.epoch_boot_of(mark bigint)
returns bigint
language sql
stable
return hashfloat8extended(date_part('epoch', pg_postmaster_start_time()), mark) & 9223372036854775806 | 1;

create function concord_internal.draw_epoch(force boolean)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  gate constant bigint := hashtextextended('concord epoch', (select oid::bigint from pg_database where datname = current_database()));
  mark bigint;
  in_place boolean;
  first_id bigint;
begin
  if pg_is_in_recovery() then
    perform concord_internal.fail('invalid_request', null, 'a standby gives out no tokens: read and commit on the primary');
  end if;
  if current_setting('transaction_read_only')::boolean then
    perform concord_internal.fail('invalid_request', null,
      'the server restarted after a crash or a restore, and a new epoch has to be drawn first: call concord.capture() once in a transaction that is not READ ONLY');
  end if;
  -- A session lock, since the drawer's transaction may last; let go in every case.
  perform pg_advisory_lock(gate);
  begin
    mark := pg_sequence_last_value('concord_internal.epoch_mark');
    in_place := mark is not null and pg_sequence_last_value('concord_internal.epoch_place') = concord_internal.epoch_place_of(mark);
    if in_place and pg_current_xact_id_if_assigned() is not null
       and (force or pg_sequence_last_value('concord_internal.epoch_host') is distinct from concord_internal.epoch_host_of(mark)) then
      perform concord_internal.fail('invalid_request', null,
        'a new epoch begins in a transaction that has not written yet: call concord.new_epoch() or concord.capture() by itself');
    end if;
    if force or not in_place or pg_sequence_last_value('concord_internal.epoch_host') is distinct from concord_internal.epoch_host_of(mark) then
      mark := hashtextextended(gen_random_uuid()::text, 0) & 9223372036854775806 | 1;
      if in_place then
        first_id := pg_current_xact_id()::text::bigint;  -- every lower id has been given out; xmax may be one of them
      end if;
      perform nextval('concord_internal.epoch_ordinal');
      perform setval('concord_internal.epoch_host', 2);  -- even: never fits
      perform setval('concord_internal.epoch_place', concord_internal.epoch_place_of(mark));
      perform setval('concord_internal.epoch_mark', mark);
      if in_place then
        perform concord_internal.wait_for_writers();
        perform setval('concord_internal.epoch_start', first_id);
      else
        perform setval('concord_internal.epoch_start', 1);
      end if;
      perform setval('concord_internal.epoch_host', concord_internal.epoch_host_of(mark));
    end if;
  exception when query_canceled or others then
    perform pg_advisory_unlock(gate);
    raise;
  end;
  perform pg_advisory_unlock(gate);
end
$$;

create function concord_internal.newly_drawn_epoch()
returns integer
language plpgsql
as $$
begin
  perform concord_internal.draw_epoch(false);
  return pg_sequence_last_value('concord_internal.epoch_ordinal');
end
$$;

-- Do mark and place fit? One expression, so that it is inlined where it is asked.
create function concord_internal.epoch_in_place()
returns boolean
language sql
return coalesce(pg_sequence_last_value('concord_internal.epoch_place')
                = concord_internal.epoch_place_of(pg_sequence_last_value('concord_internal.epoch_mark')), false);

-- The ordinal, for deltas.
create function concord_internal.epoch()
returns integer
language sql
return case when concord_internal.epoch_in_place() then pg_sequence_last_value('concord_internal.epoch_ordinal')::integer
            else concord_internal.newly_drawn_epoch() end;

-- The identity, for tokens.
create function concord_internal.epoch_identity()
returns bigint
language plpgsql
as $$
declare
  mark bigint;
begin
  if not pg_is_in_recovery() and concord_internal.epoch_in_place()
     and pg_sequence_last_value('concord_internal.epoch_boot')
           = concord_internal.epoch_boot_of(pg_sequence_last_value('concord_internal.epoch_mark')) then
    return pg_sequence_last_value('concord_internal.epoch_mark');
  end if;
  mark := pg_sequence_last_value('concord_internal.epoch_mark');
  if not pg_is_in_recovery() and concord_internal.epoch_in_place()
     and pg_sequence_last_value('concord_internal.epoch_host') = concord_internal.epoch_host_of(mark) then
    if not current_setting('transaction_read_only')::boolean then
      perform setval('concord_internal.epoch_boot', concord_internal.epoch_boot_of(mark));  -- of this mark: fits no later one
    end if;
    return mark;
  end if;
  perform concord_internal.draw_epoch(false);
  return pg_sequence_last_value('concord_internal.epoch_mark');
end
$$;

create function concord.new_epoch()
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not concord_internal.is_admin() then
    perform concord_internal.fail('forbidden', null, 'only a superuser or the owner of the database may begin a new epoch');
  end if;
  perform concord_internal.draw_epoch(true);
end
$$;
comment on function concord.new_epoch() is
  'Ends the epoch: every token given out so far is token_foreign from now on. For what SQL cannot see, a cold copy of the
data directory: call it on the copy before anybody writes. Waits for the transactions in flight, at most lock_timeout; tokens wait with it.
Only a superuser or the owner of the database. Errors: forbidden, contended.';

-- Waits until every other transaction that has an id now has ended, prepared ones too; bounded by lock_timeout.
create function concord_internal.wait_for_writers()
returns void
language plpgsql
as $$
declare
  writers constant xid[] := array(
    select l.transactionid from pg_locks l
     where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted and l.pid is distinct from pg_backend_pid());
  patience constant interval := replace(concord_internal.setting('lock_timeout'), 'min', ' minutes')::interval;
  started constant timestamptz := clock_timestamp();
begin
  while exists (select from pg_locks l where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted
                   and l.transactionid = any (writers) and l.pid is distinct from pg_backend_pid()) loop
    if clock_timestamp() > started + patience then
      raise lock_not_available using message = 'transactions that began in the old epoch have not ended: try again',
        hint = 'pg_stat_activity shows old transactions, pg_prepared_xacts the prepared ones.';
    end if;
    perform pg_sleep(0.01);
  end loop;
end
$$;

select concord_internal.open_to('concord_internal.epoch_place_of(bigint)');
select concord_internal.open_to('concord_internal.epoch_host_of(bigint)');
select concord_internal.open_to('concord_internal.epoch_boot_of(bigint)');
select concord_internal.open_to('concord_internal.draw_epoch(boolean)');
select concord_internal.open_to('concord_internal.epoch_in_place()');
select concord_internal.open_to('concord_internal.newly_drawn_epoch()');
select concord_internal.open_to('concord_internal.epoch()');
select concord_internal.open_to('concord_internal.epoch_identity()');
select concord_internal.open_to('concord_internal.wait_for_writers()');
select concord_internal.open_to('concord.new_epoch()', 'public');
