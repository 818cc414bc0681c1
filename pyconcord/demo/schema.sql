-- The demo's application and its audit. Loaded anew before each of the six ways, the same every time.

drop table if exists slides, on_call;

-- `version` is there in all ways, so that the rows are the same; two of the ways use it.
create table slides (
  id        int  primary key,
  deck      int  not null,
  title     text not null,
  body      text not null,
  notes     text not null,
  position  int  not null,
  version   int  not null default 0
);

create table on_call (
  id        int     primary key,
  shift     int     not null,
  doctor    text    not null,
  on_duty   boolean not null,
  version   int     not null default 0
);

-- The workload meets on a few decks and shifts that lie far apart in tables of some size. On tables of one page
-- SERIALIZABLE would lock the page, refuse everything, and the comparison would be worth nothing.
insert into slides (id, deck, title, body, notes, position)
select n, n / 6, 'title ' || n, repeat('body ' || n || ' ', 20), 'notes ' || n, n
  from generate_series(0, 5999) n;

insert into on_call (id, shift, doctor, on_duty)
select n, n / 2, case n % 2 when 0 then 'anna' else 'ben' end, true
  from generate_series(0, 1999) n;

create schema if not exists audit;

create table if not exists audit.rows (
  seq    bigint generated always as identity primary key,
  way    text,                        -- filled in afterwards
  xid    xid8        not null,
  at     timestamptz not null,        -- for people; the checks never compare clocks
  actor  text        not null,        -- application_name: set by every client, psql included
  model  text        not null,
  id     int         not null,
  old    jsonb       not null,
  new    jsonb       not null
);

-- What each client says it read, wrote and was answered. audit.rows and this table are all that the verdict uses.
create table if not exists audit.attempts (way text not null, attempt jsonb not null);

-- The trigger is deferred to the end of the transaction and takes one lock there, which Postgres gives back only when
-- the transaction has become visible. So `seq` is the order of commits, across rows and tables, and a snapshot that sees
-- one number sees all lower ones that will ever be there. Without the lock neither would hold: a number drawn early can
-- commit late. The lock is the last one a transaction takes, so it adds no deadlock, and it is held for the commit alone.
-- The function reads no table, so that SERIALIZABLE finds no conflict in it.
create or replace function audit.record() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(1145392463, 1);
  insert into audit.rows (xid, at, actor, model, id, old, new)
  values (pg_current_xact_id(), clock_timestamp(), current_setting('application_name'), tg_table_name, new.id,
          to_jsonb(old), to_jsonb(new));
  return null;
end
$$;

create constraint trigger audit after update on slides
  deferrable initially deferred for each row execute function audit.record();
create constraint trigger audit after update on on_call
  deferrable initially deferred for each row execute function audit.record();

-- For the way "version column bumped by a trigger"; the demo attaches it there.
create or replace function bump_version() returns trigger language plpgsql as $$
begin
  new.version := old.version + 1;
  return new;
end
$$;

analyze slides, on_call;
