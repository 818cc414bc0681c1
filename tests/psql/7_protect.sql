-- The wall, as a role that no superuser's rights carry through it. (The role belongs to this check, and goes with it.)
\set ON_ERROR_STOP on
create table notes (id int primary key, tenant text, owner text, title text);
insert into notes values (1, 'acme', 'ana', 'a1'), (2, 'acme', 'ben', 'b1'), (3, 'blue', 'ana', 'z1'), (4, null, 'ana', 'lost');
select concord.track('notes', tenant_column => 'tenant') is not null as tracked;
select jsonb_pretty(concord.protect('notes', 'tenant', 'owner') - 'protected_at') as protected;
select polname, polpermissive, polcmd from pg_policy where polrelid = 'notes'::regclass order by 1;

begin;
create role concord_check_visitor;
grant select, insert, update, delete, truncate on notes to concord_check_visitor;
set local role concord_check_visitor;
select * from notes;
select concord.act_as('acme', 'user', 'ana');
select * from notes;
update notes set title = 'mine' returning id;
insert into notes (id, title) values (5, 'stamped') returning *;
delete from notes where owner = 'ben' returning id;
\set ON_ERROR_STOP off
savepoint s;
insert into notes (id, owner) values (6, 'ben');
rollback to s;
update notes set tenant = 'blue';
rollback to s;
truncate notes;
rollback to s;
select concord.act_as('', '', '');
insert into notes (id) values (6);
rollback;
\set ON_ERROR_STOP on

-- What is left to do, and who could walk around it.
select level, name, remedy from concord.doctor() where name in ('index_missing', 'check_not_valid', 'unique_without_tenant');
alter policy concord_wall on notes using (true);
select level, name, remedy from concord.doctor() where name = 'policy_changed';
select concord.protect('notes', 'tenant', 'owner') is not null as again;
select count(*) from concord.doctor() where name = 'policy_changed';

-- And off again.
select concord.unprotect('notes');
select relrowsecurity, relforcerowsecurity from pg_class where oid = 'notes'::regclass;
select count(*) as policies from pg_policy where polrelid = 'notes'::regclass;
select count(*) as checks from pg_constraint where conrelid = 'notes'::regclass and contype = 'c';
