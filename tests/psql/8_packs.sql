-- A column pack: into a table, again, with a clash, and out again.
\set ON_ERROR_STOP off
\set VERBOSITY terse
create table decks (id int primary key, name text);
insert into decks select g, 'deck ' || g from generate_series(1, 3) g;
\set pack '{"pack": "rated", "version": 1, "columns": [{"name": "stars", "type": "int", "notNull": true, "default": "1", "fill": "id"}, {"name": "said", "type": "text", "notNull": false}], "constraints": [{"name": "decks_stars_check", "definition": "check (stars between 1 and 5)"}], "indexes": [{"name": "decks_stars_idx", "definition": "(stars)"}], "statements": []}'
call concord.add_pack('decks', :'pack');
select * from decks order by id;
select pack, version, jsonb_pretty(objects) as objects from concord.packs;
-- Again: nothing is left to be done.
call concord.add_pack('decks', :'pack');
select * from concord.todo('decks');
-- What is the user's is never changed.
alter table decks alter stars set default 3;
call concord.add_pack('decks', :'pack');
-- Inside of a transaction, and all in it.
begin;
call concord.add_pack('decks', :'pack');
rollback;
begin;
call concord.add_pack('decks', :'pack', batch => null);
rollback;
-- A clash says which.
create table cards (id int primary key, stars text);
call concord.add_pack('cards', :'pack');
call concord.add_pack('cards', '{"pack": "rated"}');
-- It goes when nothing rests on it.
create view stars as select stars from decks;
select concord.remove_pack('decks', 'rated');
drop view stars;
select concord.remove_pack('decks', 'rated');
select concord.remove_pack('decks', 'rated');
select * from decks order by id;
-- JSON that was kept as text.
create table notes (id int primary key, state text);
insert into notes values (1, '{}'), (2, '{no');
select id from concord.text_to_jsonb('notes', 'state');
update notes set state = '{"n": 1}' where id = 2;
select id from concord.text_to_jsonb('notes', 'state', report => false);
select state->'n' as n from notes order by id;
