-- One row for each applied commit: its receipt, its idempotency record, and which deltas are its own: those that its
-- transaction wrote while it wrote, cascades and triggers included. The triggers know nothing of it, so there is no
-- setting that a raw write could borrow.
create table concord_internal.commits (
  id uuid not null,
  xid xid8 not null,
  first_seq bigint not null,            -- deltas of this commit: first_seq < seq <= last_seq
  last_seq bigint not null,
  epoch integer not null,
  at timestamptz not null default clock_timestamp(),
  tenant text collate "C" not null,
  kind text collate "C" not null,
  actor text collate "C" not null,
  on_behalf_of text collate "C",
  label text,
  idempotency_key text collate "C",
  digest bytea,
  receipt jsonb,                        -- kept where there is an idempotency key: see kept_receipt
  about bigint[]                        -- rows whose values it tells: hashtextextended(key, model)
);
create index commits_xid on concord_internal.commits (xid);

-- Whose key, as one short value: tenant, id and key may have 255 characters each, and together be too long for an index. (Not
-- md5, which a server in FIPS mode refuses. The separator is in no tenant, kind or id.)
create function concord_internal.idempotency_digest(tenant text, kind text, actor text, key text)
returns bytea
language sql
immutable
return sha256(convert_to(tenant || E'\x1f' || kind || E'\x1f' || actor || E'\x1f' || key, 'UTF8'));

create unique index commits_idempotency on concord_internal.commits (concord_internal.idempotency_digest(tenant, kind, actor, idempotency_key))
  where idempotency_key is not null;
-- So that a row can be forgotten without a look at every receipt.
create index commits_about on concord_internal.commits using gin (about) where about is not null;

-- What notify did not apply. The author still has to resolve it.
create table concord_internal.held (
  commit_id uuid not null,
  at timestamptz not null,
  tenant text collate "C" not null,
  model integer not null,
  key text collate "C",                 -- null: a create without an id
  fields text[],                        -- null: the whole row (a delete)
  kind text collate "C" not null,
  actor text collate "C" not null,
  by_kind text collate "C",
  by_actor text collate "C"
);
create index held_commit on concord_internal.held (commit_id);
create index held_at on concord_internal.held (at);

create function concord_internal.commit_of(d concord_internal.deltas)
returns concord_internal.commits
language sql
stable
as $$
  select c from concord_internal.commits c
   where c.xid = d.xid and c.epoch = d.epoch and d.seq > c.first_seq and d.seq <= c.last_seq
   limit 1
$$;

select concord_internal.open_to('concord_internal.idempotency_digest(text,text,text,text)');
select concord_internal.open_to('concord_internal.commit_of(concord_internal.deltas)');
