-- The log, as consumers and owners see it.
create table slides (id int primary key, title text, body text);
create table plans (tenant text not null, id int primary key, title text);
select concord.track('slides', secret_fields => '{body}') is not null as tracked,
       concord.track('plans', tenant_column => 'tenant') is not null as tracked;
select concord.act_as('acme', 'user', 'ana', is_local => false);
insert into slides values (1, 'one', 'secret'), (2, 'two', 'secret');
update slides set title = 'One', body = 'more secret' where id = 1;
insert into plans values ('acme', 1, 'ours'), ('blue', 2, 'theirs');
select concord.commit('{"label": "by hand", "operations": [{"type": "delete", "model": "slides", "id": 2}]}')->>'status' as status;

-- Oldest first; the feed ends with a checkpoint.
select row_number() over () as n, model, id, op, fields, before, tenant, kind, actor, label, commit_id is not null as by_commit,
       next_token is not null as goes_on
  from concord.changes(null);

-- In pages, each going on where the last one ended.
select model, id, op from concord.changes(null, 2);
select next_token as after_two from concord.changes(null, 2) offset 1 \gset
select model, id, op from concord.changes(:'after_two', 2);
select next_token as at_end from concord.changes(:'after_two') where op = 'checkpoint' \gset
select model, op from concord.changes(:'at_end');
update slides set title = 'new' where id = 1;
select model, id, op, fields, before from concord.changes(:'at_end');

-- What a reader had not seen.
select concord.capture() as seen \gset
update slides set title = 'newer' where id = 1;
select model, id, op, before from concord.changes(:'seen');

-- Values of one row are forgotten; that it changed is not.
select concord.forget('slides', '1');
select op, fields, before, actor from concord.history('slides', '1');

-- Upkeep. A fresh log has little to do.
select concord.maintain() - 'made' as report;
select concord.configure('retention', '7 days'), concord.configure('lock_timeout', '2 s');
select key, value, "default" from concord.settings where value <> "default";
select concord.configure('retention', null), concord.configure('lock_timeout', null);
select leaves, models, held, oldest <= now() as oldest, maintained_at <= now() as maintained from concord.stats;
select * from concord.verify();
