-- concord is the public face: functions, and views over functions. concord_internal holds tables, helpers and generated
-- code; nobody but its owner holds a privilege on a table there, whatever default privileges this database has.
create schema concord;
create schema concord_internal;

comment on schema concord is
  'Concurrency control for think-time: tracked tables, read tokens, and commits judged against them.';
comment on schema concord_internal is
  'Tables, helpers and generated code of concord. No application role holds a privilege on a table here.';

-- Both schemas may be entered by anyone, since principal() and track() are for anyone; what may be called is decided
-- function by function, in the file that creates the function.
grant usage on schema concord, concord_internal to public;
