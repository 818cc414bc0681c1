-- A model is a tracked table under its public name. Its row says what the generated triggers were made from, so that
-- drift can be noticed, and what tokens must have seen before they can answer for it (the horizon).
create sequence concord_internal.model_id;

create table concord_internal.models (
  id integer primary key default nextval('concord_internal.model_id'),
  rel regclass not null unique,
  name text collate "C" not null check (name <> ''),
  tenant text collate "C" not null default '',   -- '' for a model that has a tenant column, or is shared
  tenant_column name,
  groups text[] not null default '{}',
  ignore_fields name[] not null default '{}',
  secret_fields name[] not null default '{}',
  detail text not null check (detail in ('names', 'before')),
  on_stale jsonb not null default '{}',
  archive_column name,                 -- operations archive and unarchive write it
  paused boolean not null default false,
  partitioned boolean not null,
  key_columns name[] not null,
  columns jsonb not null,              -- concord_internal.columns_of(rel) when the triggers were made
  any_value text[] not null,           -- columns that take any JSON value: text, json, jsonb
  signature bigint[] not null,         -- concord_internal.signature(rel) then
  named text not null,                 -- the table's qualified name then
  plain boolean not null,              -- has a function for plain commits (see 50_commit/85_plain)
  marks jsonb not null,                -- concord_internal.marks_of(rel) then
  horizon_epoch integer not null,      -- the transaction that last changed what the deltas can answer
  horizon_xid xid8 not null,
  tracked_at timestamptz not null default now(),
  unique (tenant, name)
);
alter table concord_internal.models alter column columns set storage main;  -- every commit reads it

-- The transaction that last changed which rows a kind of group holds: a model of that kind came, went, or changed. Kept
-- apart from models, since a model that is gone must still be missed. tenant '' where any tenant's rows may be meant.
create table concord_internal.group_horizons (
  tenant text collate "C" not null,
  kind text collate "C" not null,
  epoch integer not null,
  xid xid8 not null,
  primary key (tenant, kind)
);

create function concord_internal.move_group_horizon(tenant text, groups text[])
returns void
language plpgsql
as $$
begin
  insert into concord_internal.group_horizons
  select move_group_horizon.tenant, k, concord_internal.epoch(), pg_current_xact_id()
    from (select distinct split_part(g, ':', 1) as k from unnest(groups) g) u order by k
  on conflict on constraint group_horizons_pkey do update set epoch = excluded.epoch, xid = excluded.xid;
end
$$;

select concord_internal.open_to('concord_internal.move_group_horizon(text,text[])');
