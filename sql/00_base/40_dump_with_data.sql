-- Of an extension's tables pg_dump carries the definition and leaves out the rows, unless they are marked. Outside CREATE
-- and ALTER EXTENSION there is nothing to mark: the tables are ordinary then, and dumped with what is in them.
-- Which are marked is said in 99_owner/20_dump.
create function concord_internal.dump_with_data(rel regclass)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_extension_config_dump(rel, '');
exception when feature_not_supported then
  null;
end
$$;

select concord_internal.open_to('concord_internal.dump_with_data(regclass)');
