-- What history and changes show of a delta. Its attributes are part of the contract, in this order.
create type concord.change as (
  sync_id bigint,
  model text,
  id text,
  op text,
  fields text[],
  before jsonb,
  groups text[],
  tenant text,
  kind text,
  actor text,
  on_behalf_of text,
  label text,
  commit_id uuid,
  at timestamptz,
  next_token text
);
comment on type concord.change is
  'A change as concord.history() and concord.changes() show it. sync_id orders changes and is no token. op: create, update,
delete, truncate, or checkpoint (no change: it ends the feed and carries next_token). id: null where the whole model
changed. fields: null for the whole row. before: old values of those fields, as far as the log holds them and the caller
may read them; JSON that jsonb refuses (\u0000, 1e999999) is a string, its own text. groups: every group that the row was or is in. commit_id, label: null for a write that went past
concord.commit(). next_token: where changes() goes on after this one; null in history.';

-- Finds deltas by when they were logged: by transaction where a page of the feed begins, by number inside it. Half a byte
-- for each delta, since it notes only the span of each 256 kB; a btree would cost 22. (xid8 has no BRIN class, and
-- bigint holds every id that the server can reach.) On deltas_default, whose indexes every leaf copies; it stands here and not
-- with the others since nobody but the feed looks anything up in it.
create index deltas_feed on concord_internal.deltas_default using brin ((xid::text::bigint), seq)
  with (pages_per_range = 32, autosummarize = on);
