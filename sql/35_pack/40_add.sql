-- add_pack goes from stage to stage, and commits between them: no lock is held longer than one statement takes that writes no
-- rows, and rows are filled in batches. It runs with the rights of its caller, and the pack's types, expressions and statements
-- are read under the caller's search_path; what is decided is decided on a fixed one.
create procedure concord.add_pack(rel regclass, document jsonb, batch integer default 10000, inout told jsonb default null)
language plpgsql
as $$
declare
  stage text;
  tried jsonb;
  kept jsonb;
  filled bigint := 0;
  pass integer := 0;
  job record;
begin
  perform concord_internal.demand_pack(rel, document);
  tried := concord_internal.try_columns(document);
  perform concord_internal.demand_room(rel, document, tried);
  if batch operator(pg_catalog.<) 1 then
    perform concord_internal.fail('invalid_request', 'batch', 'a number of rows, or null');
  elsif batch is not null then
    commit;  -- inside of somebody's transaction this fails, and nothing was done yet
  end if;
  kept := concord_internal.retire_objects(rel, document);
  foreach stage in array array['columns', 'fill', 'filled', 'fill', 'valid', 'not null', 'constraints', 'valid', 'indexes', 'statements']::text[] loop
    if stage operator(pg_catalog.=) 'fill' then
      for job in select j.* from concord_internal.fill_jobs(rel, document, batch) j loop
        filled := filled operator(pg_catalog.+) concord_internal.fill_range(job.part, job.fills, job.first, job.last);
        if batch is not null then
          commit;
        end if;
        if job.note is not null then
          raise notice '%', job.note;
        end if;
      end loop;
    else
      kept := kept operator(pg_catalog.||) concord_internal.run_steps(rel, document, stage, tried);
      if batch is not null then
        commit;
      end if;
    end if;
  end loop;
  perform concord_internal.note_pack(rel, document, true);
  told := concord_internal.pack_told(rel, document, kept, filled);
end
$$;
comment on procedure concord.add_pack(regclass, jsonb, integer, jsonb) is
  'Spreads a column pack into a table, or brings it to the document''s version: makes what is missing, and only that. document:
what pyconcord.packs makes of a pack''s file: {"pack": name, "version": n, "columns": [{"name", "type", "default", "notNull",
"identity", "generated", "fill": SQL over the row for rows that are there, "comment"}], "constraints": [{"name",
"definition"}], "indexes": [{"name", "unique", "definition"}], "statements": [CREATE TRIGGER, POLICY, FUNCTION]}. A column of
the table that has the name and the type serves as it is, and stays the user''s; one of another type is refused, and so is any
other name that is taken. Rows that are there are filled batch rows at a time, each batch a transaction of its own; a run that
was cut short goes on when called again. batch null: all in the caller''s transaction, inside of which the call fails
otherwise (2D000, invalid transaction termination). Each lock is waited for lock_timeout at most, and held for one statement.
On a table of more than 8 MB indexes are left to be made CONCURRENTLY. told: {"rel", "pack", "version", "rows_filled", "kept":
what the user changed or dropped, which stays so, "todo": SQL that is left}. Owner of the table only. Errors: invalid_request
(param: the part of the document, or columns.NAME, constraints.NAME, indexes.NAME), forbidden, contended.';

-- A statement of a migration: its waits are bounded by Concord's own setting, and the caller's setting stands again after it.
create function concord_internal.run_bounded(statement text)
returns void
language plpgsql
as $$
declare
  was constant text := pg_catalog.current_setting('lock_timeout');
begin
  perform pg_catalog.set_config('lock_timeout', concord_internal.setting('lock_timeout'), true);
  execute statement;
  perform pg_catalog.set_config('lock_timeout', was, true);
end
$$;

-- Answers what was not done, because the user had changed what it would change.
create function concord_internal.run_steps(rel regclass, document jsonb, stage text, tried jsonb)
returns jsonb
language plpgsql
as $$
declare
  kept jsonb := '[]';
  s concord_internal.pack_step;
begin
  -- Before it is asked what is missing: of two calls at once the second finds done what the first did.
  perform concord_internal.run_bounded(pg_catalog.format('select pg_catalog.pg_advisory_xact_lock(%s)', pg_catalog.hashtextextended(rel::pg_catalog.oid::pg_catalog.text, -5)));
  for s in select x.* from concord_internal.pack_steps(rel, document, stage, tried) x loop
    if stage operator(pg_catalog.=) 'statements' then
      kept := kept operator(pg_catalog.||) concord_internal.run_statement(rel, document, s.source);
      continue;
    elsif s.statement is not null then
      perform concord_internal.run_bounded(s.statement);
    end if;
    if s.name is not null then
      perform concord_internal.note_object(rel, document operator(pg_catalog.->>) 'pack', s.kind, s.name, s.source, s.planned);
    end if;
  end loop;
  return kept;
end
$$;

-- What there is that a statement could make: on the table, and the functions of its schema. mark: changes when it is made anew.
-- maker: the transaction that made it, or the part of one.
create function concord_internal.live_objects(rel regclass)
returns table (kind text, name text, mark text, maker xid)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select 'trigger', t.tgname::text, t.oid || ' ' || t.ctid, t.xmin from pg_trigger t where t.tgrelid = rel and not t.tgisinternal
  union all select 'policy', o.polname, o.oid || ' ' || o.ctid, o.xmin from pg_policy o where o.polrelid = rel
  union all select 'function', p.oid::regprocedure::text, p.oid || ' ' || p.ctid, p.xmin
              from pg_proc p where p.pronamespace = (select relnamespace from pg_class where oid = rel)
$$;

-- Is it this transaction, or a part of it? What can be seen and is still in progress is one's own. (An xid without its epoch
-- is of this one, or, when it lies far ahead, of the last.)
create function concord_internal.is_own(maker xid)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select pg_xact_status((((n.now >> 32) - (x.low > (n.now & 4294967295) + 1000000)::integer << 32) + x.low)::text::xid8) is not distinct from 'in progress'
    from (select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as now) n, (select maker::text::bigint as low) x
$$;

-- Triggers, policies and functions are known by what appears in the catalogs when their statement runs. If that is something
-- of the user's (or of another pack's) the statement is undone: what was noted as this pack's, and changed since, stays changed.
create function concord_internal.run_statement(rel regclass, document jsonb, statement jsonb)
returns jsonb
language plpgsql
as $$
declare
  pack constant text := document operator(pg_catalog.->>) 'pack';
  theirs jsonb;
begin
  begin
    theirs := concord_internal.made_by(rel, pack, statement);
    if theirs is not null then
      raise exception using errcode = 'KC999';
    end if;
  exception when sqlstate 'KC999' then
    null;
  end;
  if theirs is null then
    return '[]';
  elsif theirs operator(pg_catalog.->>) 'state' is null then
    perform concord_internal.fail('invalid_request', 'document.statements',
      pg_catalog.format('there is a %s %s already, and it is not the pack''s', theirs operator(pg_catalog.->>) 'kind', theirs operator(pg_catalog.->>) 'name'));
  end if;
  perform concord_internal.note_source(rel, pack, theirs operator(pg_catalog.->>) 'kind', theirs operator(pg_catalog.->>) 'name', statement);
  return pg_catalog.jsonb_build_array(theirs);
end
$$;

-- Runs it, and notes what it made. Answers the first object that was not its to make, if there is one.
create function concord_internal.made_by(rel regclass, pack text, statement jsonb)
returns jsonb
language plpgsql
as $$
declare
  before constant jsonb := (select pg_catalog.jsonb_object_agg(pg_catalog.concat(o.kind, ' ', o.name), o.mark) from concord_internal.live_objects(rel) o);
  was constant jsonb := (select pg_catalog.jsonb_object_agg(pg_catalog.concat(o.kind, ' ', o.name), o.state) from concord_internal.objects_of(rel, pack) o);
  o record;
begin
  perform concord_internal.run_bounded(statement operator(pg_catalog.#>>) '{}');
  for o in
    select l.kind, l.name, before operator(pg_catalog.?) k.key as there, was operator(pg_catalog.->>) k.key as state
      from concord_internal.live_objects(rel) l cross join lateral (select pg_catalog.concat(l.kind, ' ', l.name)) k(key)
     where (before operator(pg_catalog.->>) k.key) is distinct from l.mark and concord_internal.is_own(l.maker)
  loop
    if o.there and (o.state operator(pg_catalog.=) 'made') is not true then
      return pg_catalog.jsonb_build_object('kind', o.kind, 'name', o.name, 'state', o.state);
    end if;
    perform concord_internal.note_object(rel, pack, o.kind, o.name, statement);
  end loop;
  return null;
end
$$;

-- A changed object stays noted as what the pack made once, now of another part of the document.
create function concord_internal.note_source(rel regclass, pack text, kind text, name text, source jsonb)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform concord_internal.demand_owner(rel);
  update concord_internal.pack_objects o set source = note_source.source
   where o.rel = note_source.rel and o.pack = note_source.pack and o.kind = note_source.kind and o.name = note_source.name;
end
$$;

-- The start of add_pack: what an older version made, and this one has no more, goes; what it has otherwise is dropped to be made
-- anew, or, of a column, altered. What the user changed stays, and is answered. Functions go last, when the statements ran.
create function concord_internal.retire_objects(rel regclass, document jsonb)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  pack constant text := document->>'pack';
  kept jsonb := '[]';
  o record;
  new jsonb;
begin
  perform concord_internal.note_pack(rel, document, null);
  for o in select * from concord_internal.objects_of(rel, pack) x order by x.n desc loop
    if o.kind = 'column' then
      new := (select c.e from jsonb_array_elements(document->'columns') c(e) where c.e->>'name' = o.name);
    else
      new := (select s.e from jsonb_array_elements((document->'constraints') || (document->'indexes') || (document->'statements')) s(e) where s.e = o.source limit 1);
    end if;
    if o.state in ('changed', 'gone') then
      kept := kept || jsonb_build_object('kind', o.kind, 'name', o.name, 'state', o.state);
    end if;
    if new = o.source or (new is null and o.kind = 'function') then
      continue;
    elsif new is not null then  -- a column
      if o.state = 'made' and new->>'default' is distinct from o.source->>'default' then
        perform concord_internal.run_bounded(format('alter table %s alter column %I %s', rel, o.name, coalesce('set default ' || (new->>'default'), 'drop default')));
      end if;
      if o.state = 'made' and not (new->>'notNull')::boolean and (o.source->>'notNull')::boolean then
        perform concord_internal.run_bounded(format('alter table %s alter column %I drop not null', rel, o.name));
      end if;
      if o.state = 'made' then
        perform concord_internal.note_object(rel, pack, o.kind, o.name, new);
      else
        perform concord_internal.note_source(rel, pack, o.kind, o.name, new);
      end if;
    else
      if o.state = 'made' and o.kind <> 'column' then
        perform concord_internal.drop_object(rel, o.kind, o.name);
      elsif o.kind = 'column' then
        kept := kept || jsonb_build_object('kind', o.kind, 'name', o.name, 'state', 'left');
      end if;
      perform concord_internal.forget_object(rel, pack, o.kind, o.name);
    end if;
  end loop;
  return kept;
end
$$;

-- The end of add_pack: functions of an older version that no statement of this one made.
create function concord_internal.pack_told(rel regclass, document jsonb, kept jsonb, filled bigint)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  pack constant text := document->>'pack';
  o record;
begin
  for o in
    select x.* from concord_internal.objects_of(rel, pack) x
     where x.kind = 'function' and not exists (select from jsonb_array_elements(document->'statements') s(e) where s.e = x.source)
  loop
    if o.state = 'made' then
      perform concord_internal.drop_object(rel, o.kind, o.name);
    end if;
    perform concord_internal.forget_object(rel, pack, o.kind, o.name);
  end loop;
  return jsonb_build_object('rel', rel, 'pack', pack, 'version', document->'version', 'rows_filled', filled,
    'kept', (select coalesce(jsonb_agg(distinct k), '[]') from jsonb_array_elements(kept) k), 'todo', concord_internal.pack_todo(rel, pack));
end
$$;

create function concord_internal.drop_object(rel regclass, kind text, name text)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform concord_internal.run_bounded(case kind
    when 'function' then (select format('drop %s %s', case p.prokind when 'p' then 'procedure' else 'function' end, name) from pg_proc p where p.oid = to_regprocedure(name))
    when 'index' then (select format('drop index %I.%I', n.nspname, name) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = rel)
    when 'trigger' then format('drop trigger %I on %s', name, rel)
    when 'policy' then format('drop policy %I on %s', name, rel)
    else format('alter table %s drop %s %I', rel, kind, name) end);
end
$$;

-- The columns whose nulls are of rows from before the pack, each with the SQL of what goes there.
create function concord_internal.fills_of(rel regclass, document jsonb)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(o.name, jsonb_build_object('sql', coalesce(o.source->>'fill', o.source->>'default'), 'needed', (o.source->>'notNull')::boolean))
    from concord_internal.objects_of(rel, document->>'pack') o
    join pg_attribute a on a.attrelid = rel and a.attname = o.name and not a.attisdropped
   where o.kind = 'column' and o.state = 'made' and not a.attnotnull and coalesce(o.source->>'fill', o.source->>'default') is not null
     and ((o.source->>'notNull')::boolean
          or not (select p.complete from concord_internal.packs_of(rel) p where p.pack = document->>'pack'))
$$;

-- Pages of each relation with rows of its own, about so many rows of them at a time. A row that is filled moves to the end of its
-- relation, beyond what was its end when this began.
create function concord_internal.fill_jobs(rel regclass, document jsonb, batch integer)
returns table (part regclass, fills jsonb, first bigint, last bigint, note text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  r record;
  step bigint;
begin
  fills := concord_internal.fills_of(rel, document);
  if fills is null or concord_internal.is_empty(rel) then
    return;
  elsif row_security_active(rel) then
    perform concord_internal.fail('invalid_request', 'rel', format('row-level security hides rows of %s from you, which are to be filled: add packs before concord.protect', rel));
  end if;
  for r in
    select c.oid::regclass as part, pg_relation_size(c.oid) / current_setting('block_size')::integer as pages,
           case when c.relpages > 0 and c.reltuples > 0 then c.reltuples / c.relpages else 50 end as rows
      from concord_internal.relations_of(rel) l join pg_class c on c.oid = l where c.relkind = 'r'
  loop
    part := r.part;
    step := greatest(coalesce(batch / r.rows, r.pages)::bigint, 1);
    for n in 0 .. (r.pages - 1) / step loop
      first := n * step;
      last := first + step;
      -- at every tenth, where there are so many
      note := case when (n + 1) * step < r.pages and (n + 1) * step * 10 / r.pages > n * step * 10 / r.pages
                   then format('%s: %s %% of %s filled', document->>'pack', (n + 1) * step * 10 / r.pages * 10, r.part) end;
      return next;
    end loop;
  end loop;
end
$$;

create function concord_internal.fill_range(part regclass, fills jsonb, first bigint, last bigint)
returns bigint
language plpgsql
as $$
declare
  was constant text := pg_catalog.current_setting('lock_timeout');
  statement constant text := (
    select pg_catalog.format(
             'with filled as (update only %s set %s where ctid operator(pg_catalog.>=) ''(%s,0)'' and ctid operator(pg_catalog.<) ''(%s,0)'' and (%s) returning array[%s] as missing)
              select pg_catalog.count(*), (select m from filled f, pg_catalog.unnest(f.missing) m where m is not null limit 1) from filled', part,
             pg_catalog.string_agg(pg_catalog.format('%1$I = case when %1$I is null then (%2$s) else %1$I end', f.key, f.value operator(pg_catalog.->>) 'sql'), ', '), first, last,
             pg_catalog.string_agg(pg_catalog.format('%I is null', f.key), ' or '),
             pg_catalog.string_agg(pg_catalog.format('case when %s and %I is null then %L end', f.value operator(pg_catalog.->>) 'needed', f.key, f.key), ', '))
      from pg_catalog.jsonb_each(fills) f);
  n bigint;
  missing text;
begin
  perform pg_catalog.set_config('lock_timeout', concord_internal.setting('lock_timeout'), true);
  execute statement into n, missing;
  perform pg_catalog.set_config('lock_timeout', was, true);
  if missing is not null then
    perform concord_internal.fail('invalid_request', pg_catalog.concat('columns.', missing),
      pg_catalog.format('what it is to be filled with is null for some rows of %s: the column is there, and the call can be made again with another', part));
  end if;
  return n;
end
$$;

select concord_internal.open_to('concord_internal.run_bounded(text)', 'public');
select concord_internal.open_to('concord_internal.run_steps(regclass,jsonb,text,jsonb)', 'public');
select concord_internal.open_to('concord_internal.live_objects(regclass)', 'public');
select concord_internal.open_to('concord_internal.is_own(xid)', 'public');
select concord_internal.open_to('concord_internal.run_statement(regclass,jsonb,jsonb)', 'public');
select concord_internal.open_to('concord_internal.made_by(regclass,text,jsonb)', 'public');
select concord_internal.open_to('concord_internal.note_source(regclass,text,text,text,jsonb)', 'public');
select concord_internal.open_to('concord_internal.retire_objects(regclass,jsonb)', 'public');
select concord_internal.open_to('concord_internal.pack_told(regclass,jsonb,jsonb,bigint)', 'public');
select concord_internal.open_to('concord_internal.drop_object(regclass,text,text)', 'public');
select concord_internal.open_to('concord_internal.fills_of(regclass,jsonb)', 'public');
select concord_internal.open_to('concord_internal.fill_jobs(regclass,jsonb,integer)', 'public');
select concord_internal.open_to('concord_internal.fill_range(regclass,jsonb,bigint,bigint)', 'public');
select concord_internal.open_to('concord.add_pack(regclass,jsonb,integer,jsonb)', 'public');
