-- The log: one row for each changed row, or for a whole model (op t, key null), written by triggers alone.
--
-- seq    drawn in the trigger, while the writer holds the row's lock. For one row, writers come one after another, so
--        the order of seq is the order of commits, and what a snapshot has seen of one row is a prefix of it. This is
--        what lets a check read the newest delta and stop. Across rows seq means nothing for visibility.
-- xid    the top-level transaction (pg_current_xact_id), never xmin, which is a subtransaction's after a savepoint.
-- fields the literal of a name[] ({title,body}); null is the whole row. Kept as text: an array costs 20 bytes more.
-- grp    the group that the row is in; a delta that touches several repeats them in rows of op g, without a key.
-- depth  pg_trigger_depth(): a statement inside an AFTER ROW trigger logs before the statement that caused it.
-- kind   u, a or s: user, agent, system.
-- before the old values of changed fields as JSON text; null where the model logs names only.
-- owner  whose the row is, where the table is protected with an owner column (25_protect); null where it is not, and where it
--        changed hands: then it is told to neither.
create sequence concord_internal.delta_seq cache 1;

create table concord_internal.deltas (
  xid xid8 not null,
  seq bigint not null,
  at timestamptz not null,
  epoch integer not null,
  model integer not null,
  depth smallint not null,
  op "char" not null,
  kind "char" not null,
  tenant text collate "C" not null,
  key text collate "C",
  grp text collate "C",
  fields text collate "C",
  actor text collate "C",
  on_behalf_of text collate "C",
  groups text collate "C",              -- the literal of all groups where there are several, else null
  before text collate "C",
  owner text collate "C"
) partition by range (epoch, xid);

create table concord_internal.deltas_default partition of concord_internal.deltas default;

-- On the leaf and not on the parent: a new leaf copies them, and a dump does not make them twice. Hashes keep them small: 16 bytes of key whatever the row's id is; the key itself is compared after.
create index deltas_row on concord_internal.deltas_default (hashtextextended(key, model::bigint), seq) where key is not null;
create index deltas_group on concord_internal.deltas_default (hashtextextended(grp, hashtextextended(tenant, 0)), xid) where grp is not null;
-- Whole-model deltas (TRUNCATE, refresh, a fallback that can't tell rows): few, and every check asks for them.
create index deltas_whole on concord_internal.deltas_default (model, xid) where key is null and op <> 'g';

-- Is this a delta of that row? In the words of the index deltas_row: a single expression without settings of its own, so it
-- is inlined where it is asked, and the index serves.
--
-- A condition, and not a function that gives the deltas of a row: a statement that names the log only inside such a function
-- depends on it by its plan alone. If a leaf is attached while that plan is made (making it waits for the lock on the
-- default leaf), nothing is there yet to be marked as changed, and the plan that lacks the leaf is kept: its session saw no
-- delta of the new leaf any more. So whatever looks into the log names concord_internal.deltas itself.
create function concord_internal.is_of_row(delta_model integer, delta_key text, model integer, key text)
returns boolean
language sql
immutable
as $$
  select hashtextextended(delta_key, delta_model::bigint) = hashtextextended(key, model::bigint)
         and delta_key is not null and delta_key = key and delta_model = model
$$;

select concord_internal.open_to('concord_internal.is_of_row(integer,text,integer,text)');

-- What was cut off: a token that may not have seen a transaction below the floor is expired.
create table concord_internal.log_floor (
  only_one boolean primary key default true check (only_one),
  epoch integer not null default 0,
  xid xid8 not null default '0'
);
