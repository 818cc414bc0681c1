-- A table becomes a model, plain SQL is logged, and the table is as it was when it is no model any more.
create table slides (id int primary key, deck text, title text not null, body text, price numeric);

-- Its definition, as far as the catalogs tell: compared at the end.
create view definition as
  select 'column ' || attname as part, format_type(atttypid, atttypmod) || ' ' || attnotnull || ' ' || attstorage::text as shape
    from pg_attribute where attrelid = 'slides'::regclass and attnum > 0 and not attisdropped
  union all
  select 'trigger ' || tgname, pg_get_triggerdef(oid) from pg_trigger where tgrelid = 'slides'::regclass
  union all
  select 'index ' || indexrelid::regclass, pg_get_indexdef(indexrelid) from pg_index where indrelid = 'slides'::regclass
  union all
  select 'constraint ' || conname, pg_get_constraintdef(oid) from pg_constraint where conrelid = 'slides'::regclass
  union all
  select 'table', concat_ws(' ', relacl, reloptions, relrowsecurity, relreplident::text) from pg_class where oid = 'slides'::regclass;
create table definition_before as select * from definition;

select t->'rel' as rel, t->'name' as name, t->'groups' as groups, t->'ignore_fields' as ignored, t->'detail' as detail
  from concord.track('slides', groups => array['deck:{deck}'], ignore_fields => '{price}') t;
select tgname, tgenabled from pg_trigger where tgrelid = 'slides'::regclass and not tgisinternal order by 1;
select rel, name, key_columns, groups, ignore_fields, detail, paused from concord.models;

-- Again: the model changes in place to what is passed.
select concord.track('slides', groups => array['deck:{deck}'])->'ignore_fields' as ignored;
select count(*) as triggers from pg_trigger where tgrelid = 'slides'::regclass and not tgisinternal;

-- Writers know nothing of it.
insert into slides values (1, 'a', 'one', 'text', 1.50), (2, 'a', 'two', 'text', 2);
update slides set title = 'One' where id = 1;
update slides set price = 1.5 where id = 1;   -- equal to 1.50, but not the same to a reader
update slides set title = title;              -- nothing
update slides set deck = 'b', body = null where id = 2;
begin;
update slides set title = 'never' where id = 1;
rollback;
insert into slides values (2, 'c', 'upserted') on conflict (id) do update set title = excluded.title;
update slides set id = 3 where id = 2;        -- another key is another row
delete from slides where id = 3;
select row_number() over () as n, id, op, fields, before, groups, kind, commit_id from concord.history('slides', '1');
select row_number() over () as n, id, op, fields, before, groups from concord.history('slides', '2');
select row_number() over () as n, id, op, fields, before from concord.history('slides', '3');
truncate slides;
select id, op, fields, before, groups from concord.history('slides', '1', 1);

-- Switched off and on.
select concord.pause('slides');
insert into slides values (7, 'a', 'unseen');
select concord.resume('slides');
insert into slides values (8, 'a', 'seen');
select count(*) as of_7 from concord.history('slides', '7') where id is not null;
select count(*) as of_8 from concord.history('slides', '8') where id is not null;

-- Columns come and go; refresh makes the triggers fit again.
alter table slides add column note text;
update slides set note = 'new' where id = 8;
select level, code, model from concord.verify();
select concord.refresh('slides');
select * from concord.verify();
select fields from concord.history('slides', '8', 1);
alter table slides drop column note;

-- No trace.
select concord.untrack('slides');
select * from concord.models;
table definition except table definition_before order by 1;
table definition_before except table definition order by 1;
select count(*) as functions from pg_proc where pronamespace = 'concord_internal'::regnamespace and proname like 'model\_%\_insert';
select * from concord.verify();
