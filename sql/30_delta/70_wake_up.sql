-- Wake-ups, opt-in by the setting notify: a trigger on the log that is there only while they are wanted, so that nobody else
-- pays. The payload is the transaction's id, no value of a row; equal payloads of one transaction are sent once. Nothing
-- depends on them: who misses one finds the change in concord.changes().
create function concord_internal.wake_up()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_notify('concord', pg_current_xact_id()::text);
  return null;
end
$$;

create function concord_internal.set_wake_ups(wanted boolean)
returns void
language plpgsql
as $$
begin
  if wanted then
    create or replace trigger concord_wake_up after insert on concord_internal.deltas
      for each statement execute function concord_internal.wake_up();
  else
    drop trigger if exists concord_wake_up on concord_internal.deltas;
  end if;
end
$$;

select concord_internal.open_to('concord_internal.wake_up()');
select concord_internal.open_to('concord_internal.set_wake_ups(boolean)');
