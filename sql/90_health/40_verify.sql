create function concord.verify()
returns setof concord.finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  everything constant boolean := concord_internal.is_service();
begin
  if everything then
    return query select * from concord_internal.pack_findings();
    return query select * from concord_internal.server_findings();
  end if;
  return query
    select f.* from concord_internal.models m cross join lateral concord_internal.model_findings(m) f
     where everything or concord_internal.owns(m.rel)
     order by m.tenant, m.name;
end
$$;
comment on function concord.verify() is
  'What is not as it should be: no row means healthy. level error: a promise does not hold; warning: it will not, or it
costs. Each row says what to do. A superuser, the owner of the database and trusted logins see everything, others what
concerns tables of their own. Reads catalogs only, and takes no lock that anybody would mind.';

select concord_internal.open_to('concord.verify()', 'public');
