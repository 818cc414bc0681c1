-- comments/v1: a shape of table that programs may rely on, for what people and agents say about rows of other tables. The
-- name is reserved both ways: a table that claims the contract has the shape, and a model goes by the name only if
-- its table claims it.
--
--   id            uuid, made by the database
--   tenant        whose it is, stamped
--   author        who wrote it (see owner_of), stamped, never changed
--   editor        who wrote last
--   at            when it was written, never changed
--   body          1 to 10,000 characters, not blank
--   model, row_id    what it is about, as commits name it, never changed
--   target        what its author saw of that row: an object of fields, at most 100,000 characters of JSON; null: nothing
--   reply_to      another comment about the same row
create function concord_internal.comment_columns(out name text, out type text, out needed boolean)
returns setof record
language sql
immutable
begin atomic
  values ('id', 'uuid', true), ('tenant', 'text', true), ('author', 'text', true), ('editor', 'text', false),
         ('at', 'timestamp with time zone', true), ('body', 'text', true), ('model', 'text', true), ('row_id', 'text', true),
         ('target', 'jsonb', false), ('reply_to', 'uuid', false);
end;

create function concord_internal.demand_contract(p concord_internal.protections, columns jsonb)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  bad text;
begin
  if p.contract <> 'comments/v1' then
    perform concord_internal.fail('invalid_request', 'contract', format('there is no contract %L: there is comments/v1', p.contract));
  end if;
  select c.name into bad from concord_internal.comment_columns() c
   where columns->c.name->>'t' is distinct from c.type or columns->c.name ? 'g'
      or c.needed and not (select a.attnotnull from pg_attribute a where a.attrelid = p.rel and a.attname = c.name)
   limit 1;
  if found then
    perform concord_internal.fail('invalid_request', 'contract', format('comments/v1 has a column %I as concord.create_comments makes it', bad));
  end if;
  select c.name into bad from unnest(array['concord_comment_body', 'concord_comment_target', 'concord_comment_reply']) c(name)
   where not exists (select from pg_constraint k where k.conrelid = p.rel and k.conname = c.name and k.convalidated);
  if found then
    perform concord_internal.fail('invalid_request', 'contract', format('comments/v1 has a constraint %I as concord.create_comments makes it', bad));
  end if;
  if (p.tenant_column, p.owner_column, p.editor_column) is distinct from ('tenant'::name, 'author'::name, 'editor'::name)
     or p.writable is null or p.delegated or p.writable->>'insert' = 'none' or p.writable->>'update' = 'any' then
    perform concord_internal.fail('invalid_request', 'contract',
      'comments/v1 is writable, by tenant, author and editor: anybody inserts, and nobody but the author updates');
  end if;
end
$$;

create function concord.create_comments(name text, writable jsonb default '{"insert": "any", "update": "own", "delete": "own"}')
returns jsonb
language plpgsql
as $$
declare
  parts text[];
  told jsonb;
begin
  begin
    parts := pg_catalog.parse_ident(name);
  exception when invalid_parameter_value then
    parts := null;
  end;
  if (pg_catalog.cardinality(parts) operator(pg_catalog.<=) 2) is not true then
    perform concord_internal.fail('invalid_request', 'name', 'the new table''s name, as in SQL');
  end if;
  name := (select pg_catalog.string_agg(pg_catalog.quote_ident(u.part), '.' order by u.n) from pg_catalog.unnest(parts) with ordinality u(part, n));
  if pg_catalog.to_regclass(name) is not null then
    perform concord_internal.fail('invalid_request', 'name', pg_catalog.format('there is a table %s', name));
  end if;
  execute pg_catalog.format($table$
    create table %1$s (
      id pg_catalog.uuid primary key default pg_catalog.gen_random_uuid(),
      tenant pg_catalog.text not null,
      author pg_catalog.text not null,
      editor pg_catalog.text,
      at pg_catalog.timestamptz not null default pg_catalog.clock_timestamp(),
      body pg_catalog.text not null constraint concord_comment_body
        check (pg_catalog.length(body) operator(pg_catalog.<=) 10000 and body operator(pg_catalog.~) '[^[:space:]]'),
      model pg_catalog.text not null,
      row_id pg_catalog.text not null,
      target pg_catalog.jsonb constraint concord_comment_target
        check (pg_catalog.jsonb_typeof(target) operator(pg_catalog.=) 'object' and pg_catalog.length(target::text) operator(pg_catalog.<=) 100000),
      reply_to pg_catalog.uuid,
      unique (tenant, model, row_id, id),
      constraint concord_comment_reply foreign key (tenant, model, row_id, reply_to) references %1$s (tenant, model, row_id, id) on delete cascade
    )$table$, name);
  execute pg_catalog.format('create index on %s (tenant, author)', name);
  execute pg_catalog.format('create index on %s (tenant, model, row_id, reply_to)', name);
  told := concord.protect(name::pg_catalog.regclass, 'tenant', 'author', writable => writable, editor_column => 'editor', contract => 'comments/v1');
  perform concord.track(name::pg_catalog.regclass, tenant_column => 'tenant', groups => array['comments:{model}/{row_id}']);
  return told;
end
$$;
comment on function concord.create_comments(text, jsonb) is
  'Makes a table of the contract comments/v1, tracks it (each row is in the group comments:model/row_id, of what it is about), and
protects it. Columns: id (uuid), tenant, author, editor (stamped), at (timestamptz, stamped), body (1 to 10,000 characters, not
blank), model and row_id (what it is about), target (a JSON object: what its author saw of that row), reply_to (a comment about the
same row). But for body nothing changes after the insert. writable: as in concord.protect; update is own or none. The table is the
caller''s, and in no extension: grant on it what applications need. Returns what concord.protect returns.
Errors: invalid_request (param: name, writable, contract).';

select concord_internal.open_to('concord_internal.comment_columns()', 'public');
select concord_internal.open_to('concord_internal.demand_contract(concord_internal.protections,jsonb)', 'public');
select concord_internal.open_to('concord.create_comments(text,jsonb)', 'public');
