-- Grants stand in the file that creates the function, through this one helper: a role that could not be made is passed
-- over, and PUBLIC's default EXECUTE goes first.
create function concord_internal.open_to(fn regprocedure, variadic grantees text[] default '{}')
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  grantee text;
begin
  execute format('revoke all on function %s from public', fn);
  foreach grantee in array grantees loop
    if grantee = 'public' then
      execute format('grant execute on function %s to public', fn);
    elsif to_regrole(grantee) is not null then
      execute format('grant execute on function %s to %I', fn, grantee);
    end if;
  end loop;
end
$$;

-- The same for the views of the public face.
create function concord_internal.open_view_to(view regclass, variadic grantees text[])
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  grantee text;
begin
  foreach grantee in array grantees loop
    if grantee = 'public' then
      execute format('grant select on %s to public', view);
    elsif to_regrole(grantee) is not null then
      execute format('grant select on %s to %I', view, grantee);
    end if;
  end loop;
end
$$;

-- A rule for the whole pack: a function that is called both by invokers (under the user's search_path) and by definers
-- (under theirs) pins search_path itself. Postgres plans a function's expressions anew whenever it finds another
-- search_path than last time, and that costs ten times what pinning costs.
