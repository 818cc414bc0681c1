-- For stores that kept JSON as text. Nothing changes until every row parses: the rows are read first, under a lock that keeps
-- writers out, and what does not parse is reported with its key.
create function concord.text_to_jsonb(rel regclass, col name, report boolean default true)
returns table (id text, problem text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  bad boolean := false;
  type text;
begin
  if rel is null or to_regclass(rel::text) is null then
    perform concord_internal.fail('invalid_request', 'rel', 'no such table');
  end if;
  perform concord_internal.demand_owner(rel);
  type := concord_internal.columns_of(rel)->(col::text)->>'t';
  if (type in ('text', 'json') or type like 'character varying%') is not true then
    perform concord_internal.fail('invalid_request', 'col', format('%s has no column %I of text', rel, col));
  elsif row_security_active(rel) then
    perform concord_internal.fail('invalid_request', 'rel', format('row-level security hides rows of %s from you: do this before concord.protect', rel));
  end if;
  if not report then
    perform concord_internal.lock_table(rel);
  end if;
  for id, problem in select * from concord_internal.no_jsonb(rel, col) loop
    bad := true;
    return next;
  end loop;
  if bad or report then
    return;
  end if;
  perform concord_internal.retype_as_jsonb(rel, col);
end
$$;
comment on function concord.text_to_jsonb(regclass, name, boolean) is
  'Makes jsonb of a column of text, varchar or json, such as a pack needs. report true: only looks, and returns the rows that do
not parse: the row''s key (as JSON where the table has no primary key: its place) and why. report false: the same, and where
there is none such the column is jsonb after, with its default; that rewrites the table under ACCESS EXCLUSIVE, for which it
waits lock_timeout at most. Owner of the table only. Errors: invalid_request (param: rel, col), forbidden, contended.';

create function concord_internal.no_jsonb(rel regclass, col name)
returns table (id text, problem text)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  keys constant name[] := concord_internal.key_columns_of(rel);
  r record;
begin
  for r in execute format('select %s as id, r.%I::text as value from %s r where r.%I is not null',
             case when keys is null then 'r.ctid::text' else concord_internal.key_expression(keys, concord_internal.columns_of(rel), 'r') end, col, rel, col) loop
    begin
      perform r.value::jsonb;
    exception when data_exception or program_limit_exceeded then
      id := r.id;
      problem := sqlerrm;
      return next;
    end;
  end loop;
end
$$;

create function concord_internal.retype_as_jsonb(rel regclass, col name)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  expression constant text := (select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
                                where d.adrelid = rel and a.attname = col);
begin
  perform concord_internal.run_bounded(concat_ws(', ', format('alter table %s alter column %I drop default', rel, col),
    format('alter column %1$I type pg_catalog.jsonb using %1$I::pg_catalog.jsonb', col),
    format('alter column %I set default (', col) || expression || ')::pg_catalog.jsonb'));
end
$$;

select concord_internal.open_to('concord.text_to_jsonb(regclass,name,boolean)', 'public');
select concord_internal.open_to('concord_internal.no_jsonb(regclass,name)', 'public');
select concord_internal.open_to('concord_internal.retype_as_jsonb(regclass,name)', 'public');
