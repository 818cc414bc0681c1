-- Every error code, with its SQLSTATE, and that the session goes on.
create table slides (id int primary key, title text, price int);
insert into slides values (1, 'one', 1);
select concord.track('slides') is not null as tracked;
create table no_key (id int);
create view a_view as select * from slides;

-- SQLSTATE, message and DETAIL of what a statement raises. Tokens are not shown.
create function attempt(statement text) returns text language plpgsql as $$
declare
  state text; message text; detail text;
begin
  execute statement;
  return 'no error';
exception when others then
  get stacked diagnostics state = returned_sqlstate, message = message_text, detail = pg_exception_detail;
  detail := (detail::jsonb - 'notifications')::text;
  return concat_ws(E'\n', state, message, detail);
end $$;
create function commit_of(operation jsonb, more jsonb default '{}') returns text language sql as $$
  select attempt(format('select concord.commit(%L)', jsonb_build_object('operations', jsonb_build_array(operation)) || more))
$$;
select code, sqlstate, retryable from concord_internal.error_codes();

select concord.capture() as before \gset
\set update '{"type": "update", "model": "slides", "id": 1, "data": {"title": "x"}}'
select commit_of(:'update') as nobody_acts;
select concord.act_as('acme', 'user', 'ana', is_local => false);

select commit_of('{"type": "update", "model": "nothing", "id": 1, "data": {"title": "x"}}') as model_unknown;
select commit_of('{"type": "update", "model": "slides", "id": 2, "data": {"title": "x"}}') as not_found;
select commit_of('{"type": "create", "model": "slides", "id": 1, "data": {}}') as already_exists;
select commit_of('{"type": "update", "model": "slides", "id": 1, "data": {"title": "x"}, "where": {"title": "two"}}') as precondition_failed;
update slides set title = 'theirs';
select commit_of(:'update', jsonb_build_object('readAt', :'before')) as stale_context;

-- Tokens.
select commit_of(:'update', '{"readAt": "17"}') as a_number;
select commit_of(:'update', jsonb_build_object('readAt', left(:'before', -1))) as cut_short;
select commit_of(:'update', jsonb_build_object('readAt', replace(:'before', 'kc1', 'kc2'))) as altered;
select concord.new_epoch();
select commit_of(:'update', jsonb_build_object('readAt', :'before')) as foreign_;
select concord.capture() as before \gset
select concord.untrack('slides'), concord.track('slides') is not null as tracked;
select commit_of(:'update', jsonb_build_object('readAt', :'before')) as older_than_track;
select attempt(format('select * from concord.changes(%L)', 'kcf1.1.1:1:.0000000000000000')) as not_a_position;

-- Requests.
select commit_of('{"type": "update", "model": "slides", "id": 1, "data": {"titel": "x"}}') as unknown_column;
select commit_of('{"type": "update", "model": "slides", "id": 1, "data": {"price": "dear"}}') as wrong_type;
select commit_of('{"type": "update", "model": "slides", "id": "one", "data": {"title": "x"}}') as wrong_id;
select commit_of('{"type": "update", "model": "slides", "id": 1, "data": {}}') as no_fields;
select commit_of('{"type": "upsert", "model": "slides", "id": 1}') as unknown_type;
select commit_of(:'update', '{"onstale": "notify"}') as unknown_key;
select commit_of(:'update', '{"reads": [{"model": "slides", "id": 1}]}') as a_read_without_a_token;
select commit_of(:'update', jsonb_build_object('idempotencyKey', repeat('k', 256))) as long_key;
select attempt('select concord.commit(''{"operations": []}'')') as no_operations;
select attempt('select concord.commit(''[]'')') as not_an_object;
select attempt('select concord.commit(null)') as null_;
begin isolation level repeatable read;
select commit_of(:'update') as wrong_isolation;
rollback;

-- Tables that can't be tracked.
select attempt('select concord.track(''no_key'')') as without_a_key;
select attempt('select concord.track(''a_view'')') as a_view;
select attempt('select concord.track(''pg_class'')') as a_system_table;
select attempt('select concord.track(''slides'', groups => ''{deck}'')') as a_group;
select attempt('select concord.untrack(''no_key'')') as not_tracked;

-- Settings and identity.
select attempt('select concord.configure(''retention'', ''soon'')') as setting;
select attempt('select concord.configure(''retenshun'', ''1 day'')') as no_setting;
select attempt('select concord.act_as(''acme'', ''robot'', ''r2'')') as kind;
select attempt('select concord.trust_login(''nobody there'')') as login;

-- No trace of any of it.
select * from slides;
select op, count(*) from concord.changes(null) group by op order by op;
select * from concord.verify();
