-- A delta of a whole model: TRUNCATE (op t), or something that can't be told row by row (op u, fields null): a refresh
-- that found a leaf without triggers, a fallback without its key; or that shall not be, and then it has fields (55_bulk).
-- Of no tenant, and without values.
-- Inside a commit it excludes every other commit that may see the model: each shares the empty tenant and its own. A premise
-- of theirs on a row or a group that this changes holds other locks than could be named here.
create function concord_internal.write_whole_delta(model integer, op "char" default 'u', fields name[] default null)
returns void
language plpgsql
as $$
declare
  author record;
begin
  if current_setting('concord.committing', true) = '1' then
    perform pg_advisory_xact_lock(concord_internal.tenant_lock(m.tenant)) from concord_internal.models m where m.id = model;
  end if;
  select * into author from concord_internal.author();
  insert into concord_internal.deltas (xid, seq, at, epoch, model, depth, op, kind, tenant, fields, actor, on_behalf_of)
  values (pg_current_xact_id(), nextval('concord_internal.delta_seq'), clock_timestamp(), concord_internal.epoch(), model,
          pg_trigger_depth(), op, author.kind, '', fields::text, author.actor, author.on_behalf_of);
end
$$;

select concord_internal.open_to('concord_internal.write_whole_delta(integer,"char",name[])');
