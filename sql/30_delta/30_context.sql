-- What every generated trigger asks first, in one call and one query.
create type concord_internal.write_context as (
  paused boolean,               -- log nothing
  drifted boolean,              -- the columns are not those that the trigger was made from
  committing boolean,           -- inside concord.commit: take its locks for what changes indirectly
  xid xid8, at timestamptz, epoch integer, depth smallint,
  kind "char", actor text, on_behalf_of text
);

create function concord_internal.write_context(model integer, rel oid, made_from bigint)
returns concord_internal.write_context
language plpgsql
as $$
declare
  x concord_internal.write_context;
  acting constant text := current_setting('concord.acting', true);
begin
  select m.paused, s.signature is distinct from made_from into x.paused, x.drifted
    from concord_internal.models m,
         (select bit_xor(hashtextextended(attname::text || attgenerated::text,
                   case when atttypid < 16384 and attcollation < 1000 then atttypid::bigint << 32 | attcollation::bigint
                        else hashtextextended(format_type(atttypid, null) || attcollation::regcollation::text, 0) end)) as signature
            from pg_attribute where attrelid = rel and attnum > 0 and not attisdropped) s
   where m.id = model;
  if x.paused is null then
    x.paused := true;  -- the model is gone while its trigger still stands: nothing to log for
  end if;
  -- The row that fired this has its xid already, so the epoch is read after the id was given out (see 40_token/10_epoch).
  x.xid := pg_current_xact_id();
  x.at := clock_timestamp();
  x.epoch := concord_internal.epoch();
  x.depth := pg_trigger_depth();
  if acting is null or acting = '' then
    x.kind := 's';
    x.actor := session_user;
  else
    select a.kind, a.actor, a.on_behalf_of into x.kind, x.actor, x.on_behalf_of from concord_internal.author() a;
  end if;
  x.committing := current_setting('concord.committing', true) = '1';
  return x;
end
$$;

select concord_internal.open_to('concord_internal.write_context(integer,oid,bigint)');
