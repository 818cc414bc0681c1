-- pack: comment
-- version: 1
-- protect: {"tenant_column": "tenant", "owner_column": "author", "editor_column": "editor", "contract": "comments/v1", "writable": {"insert": "any", "update": "own", "delete": "own"}}
-- track: {"tenant_column": "tenant", "groups": ["comments:{model}/{row_id}"]}
--
-- What people and agents say about rows of other tables: the contract comments/v1, whose names are fixed. The same table as
-- concord.create_comments makes.
create table :"table" (
  id uuid primary key default gen_random_uuid(),
  tenant text not null,
  author text not null,
  editor text,
  at timestamptz not null default clock_timestamp(),
  body text not null constraint concord_comment_body check (length(body) <= 10000 and body ~ '[^[:space:]]'),
  model text not null,
  row_id text not null,
  target jsonb constraint concord_comment_target check (jsonb_typeof(target) = 'object' and length(target::text) <= 100000),
  reply_to uuid,
  unique (tenant, model, row_id, id),
  constraint concord_comment_reply foreign key (tenant, model, row_id, reply_to) references :"table" (tenant, model, row_id, id) on delete cascade
);
create index on :"table" (tenant, author);
create index on :"table" (tenant, model, row_id, reply_to);
