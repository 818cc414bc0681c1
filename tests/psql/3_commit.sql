-- Guarded writes: what lands, what is refused and why, what is held.
create table slides (id int primary key, deck text, title text, body text);
insert into slides select n, 'a', 'title ' || n, 'body' from generate_series(1, 9) n;
select concord.track('slides', groups => array['deck:{deck}']) is not null as tracked;
select concord.act_as('acme', 'agent', 'writer', is_local => false);

-- A request, and its answer without what differs from run to run.
create function ask(request jsonb) returns text language sql volatile as $$
  select regexp_replace(regexp_replace(regexp_replace(jsonb_pretty(concord.try_commit(request)),
           'kc1\.[0-9a-f]+\.[^"]*', '<token>', 'g'),
           '\d{4}-\d\d-\d\dT[0-9:.]+\+00:00', '<time>', 'g'),
           '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', '<uuid>', 'g')
$$;
create function update_of(id int, data jsonb, read_at text, more jsonb default '{}') returns jsonb language sql immutable as $$
  select jsonb_build_object('operations', jsonb_build_array(
           jsonb_build_object('type', 'update', 'model', 'slides', 'id', id, 'data', data))) || jsonb_strip_nulls(jsonb_build_object('readAt', read_at)) || more
$$;

-- 1. Nothing moved since it was read: it lands.
select concord.read('slides', '1')->'data' as row, concord.read('slides', '1')->>'readAt' as seen \gset
\echo :row
select ask(update_of(1, '{"title": "edited"}', :'seen'));
select * from slides where id = 1;

-- 2. Somebody changed that field since. Refused, and the answer says what there is now, what there was, and who it was.
select concord.capture() as seen \gset
begin;
select concord.act_as('acme', 'user', 'ana');
update slides set title = 'theirs', body = 'theirs' where id = 2;
commit;
select ask(update_of(2, '{"title": "mine"}', :'seen'));
select title from slides where id = 2;

-- As an exception, with the same in its DETAIL.
select set_config('check.seen', :'seen', false) as kept \gset
do $$
declare
  state text; message text; detail jsonb; text_of_it text;
begin
  perform concord.commit(update_of(2, '{"title": "mine"}', current_setting('check.seen')));
exception when others then
  get stacked diagnostics state = returned_sqlstate, message = message_text, text_of_it = pg_exception_detail;
  detail := text_of_it;
  raise notice '% %', state, message;
  raise notice '% % %', detail->'code', detail->'retryable', detail->'notifications'->0->'conflictingFields';
end $$;

-- 3. Another field of the row is no conflict, nor is a value that is there already.
select ask(update_of(2, '{"deck": "b"}', :'seen'));
select ask(update_of(2, '{"title": "theirs"}', :'seen'));

-- 4. notify: the stale operation is held, the other one goes on.
select ask(jsonb_build_object('readAt', :'seen', 'onStale', 'notify', 'operations', jsonb_build_array(
  jsonb_build_object('type', 'update', 'model', 'slides', 'id', 2, 'data', jsonb_build_object('title', 'mine')),
  jsonb_build_object('type', 'update', 'model', 'slides', 'id', 3, 'data', jsonb_build_object('title', 'mine')))));
select id, title from slides where id in (2, 3) order by 1;
select model, id, fields, kind, actor, by_kind, by_actor from concord.conflicts;

-- 5. overwrite: no check, no word.
select concord.try_commit(update_of(2, '{"title": "mine"}', :'seen', '{"onStale": "overwrite"}'))->>'status' as status;
select title from slides where id = 2;

-- 6. A premise: a decision about one row rests on another, on its absence, or on a group.
select concord.capture() as seen \gset
update slides set body = 'moved' where id = 5;
select ask(update_of(4, '{"title": "because of 5"}', null, jsonb_build_object('reads', jsonb_build_array(
  jsonb_build_object('model', 'slides', 'id', 5, 'fields', jsonb_build_array('body'), 'readAt', :'seen')))));
select concord.try_commit(update_of(4, '{"title": "because of 5"}', null, jsonb_build_object('reads', jsonb_build_array(
  jsonb_build_object('model', 'slides', 'id', 5, 'fields', jsonb_build_array('title'), 'readAt', :'seen')))))->>'status' as rests_on_its_title;
select concord.try_commit(update_of(4, '{"title": "nobody has 10"}', null, jsonb_build_object('reads', jsonb_build_array(
  jsonb_build_object('model', 'slides', 'id', 10, 'exists', false, 'readAt', :'seen')))))->>'status' as absent;
insert into slides values (10, 'a', 'ten');
select concord.try_commit(update_of(4, '{"title": "nobody has 10"}', null, jsonb_build_object('reads', jsonb_build_array(
  jsonb_build_object('model', 'slides', 'id', 10, 'exists', false, 'readAt', :'seen')))))->'error'->>'code' as absent_no_more;
select concord.try_commit(update_of(4, '{"title": "the deck is whole"}', null, jsonb_build_object('reads', jsonb_build_array(
  jsonb_build_object('group', 'deck:a', 'readAt', :'seen')))))->'error'->>'code' as deck_a_moved;
select concord.try_commit(update_of(4, '{"title": "the deck is whole"}', null, jsonb_build_object('reads', jsonb_build_array(
  jsonb_build_object('group', 'deck:c', 'readAt', :'seen')))))->>'status' as deck_c_did_not;

-- 7. Create, delete, and a condition on current values.
select ask('{"returning": true, "operations": [{"type": "create", "model": "slides", "id": 20, "data": {"title": "new"}}]}');
select concord.try_commit('{"operations": [{"type": "create", "model": "slides", "id": 20, "data": {}}]}')->'error'->>'code' as again;
select concord.try_commit('{"operations": [{"type": "update", "model": "slides", "id": 20, "data": {"body": "x"}, "where": {"title": "other"}}]}')->'error'->>'code' as "where";
select concord.try_commit('{"operations": [{"type": "delete", "model": "slides", "id": 20}]}')->>'status' as deleted;
select concord.try_commit('{"operations": [{"type": "delete", "model": "slides", "id": 20}]}')->'error'->>'code' as gone;

-- 8. All or nothing.
select concord.try_commit('{"operations": [{"type": "update", "model": "slides", "id": 1, "data": {"title": "half"}},
                                           {"type": "update", "model": "slides", "id": 99, "data": {"title": "half"}}]}')->'error' as error;
select count(*) as halves from slides where title = 'half';

-- 9. The receipt's token has seen the own commit.
select concord.commit(update_of(1, '{"title": "once"}', null))->>'readAt' as seen \gset
select concord.commit(update_of(1, '{"title": "twice"}', :'seen'))->>'status' as at_once;

-- 10. A whole object that was saved: what it did not change is no write.
select concord.read('slides', '6') as whole \gset
update slides set body = 'theirs' where id = 6;
select concord.try_commit(update_of(6, (:'whole'::jsonb->'data') || '{"title": "mine"}', :'whole'::jsonb->>'readAt', '{"onlyChanged": true}'))->>'status' as saved;
select title, body from slides where id = 6;
