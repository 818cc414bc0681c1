-- What packs and protect left to be done for a table, one statement a row: for no transaction, as CREATE INDEX CONCURRENTLY is.
create function concord.todo(rel regclass)
returns setof text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  p concord_internal.protections;
begin
  if rel is null or to_regclass(rel::text) is null then
    perform concord_internal.fail('invalid_request', 'rel', 'no such table');
  end if;
  perform concord_internal.demand_owner(rel);
  return query select t.statement from concord_internal.packs_of(todo.rel) k
                cross join lateral jsonb_array_elements_text(concord_internal.pack_todo(todo.rel, k.pack)) t(statement);
  p := concord_internal.protection_of(rel);
  if p.id is not null then
    return query select concord_internal.protection_todo(p);
  end if;
end
$$;
comment on function concord.todo(regclass) is
  'The SQL that concord.add_pack and concord.protect left to be run for a table, outside of a transaction, one statement a row:
indexes made CONCURRENTLY, checks to validate. No row: nothing is left. In psql: select concord.todo(''slides'') \gexec. Owner
of the table only. Errors: invalid_request, forbidden.';

select concord_internal.open_to('concord.todo(regclass)', 'public');
