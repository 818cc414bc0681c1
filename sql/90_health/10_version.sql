-- The version that this script is of; the control file's default_version names the script.
create function concord.version()
returns text
language sql
immutable
parallel safe
return '0.1.0';
comment on function concord.version() is 'The version of the pack in this database.';

select concord_internal.open_to('concord.version()', 'public');
