-- What a generated trigger asks before it looks at the rows: true, its columns are those it was made from, go on; false, they
-- drifted; null, log nothing (paused, or the trigger outlived its model). One query: it runs for every statement.
create function concord_internal.trigger_fits(model integer, rel oid, made_from bigint[])
returns boolean
language plpgsql
stable
as $$
begin
  return (select made_from = array(  -- concord_internal.signature(rel), spelled out: a call costs as much again
             select hashnameextended(a.attname, (a.atttypid::bigint << 32 | a.attcollation::bigint) + a.attgenerated::integer)
               from pg_attribute a where a.attrelid = trigger_fits.rel and a.attnum > 0 and not a.attisdropped order by a.attnum)
            from concord_internal.models m where m.id = trigger_fits.model and not m.paused);
end
$$;

select concord_internal.open_to('concord_internal.trigger_fits(integer,oid,bigint[])');
