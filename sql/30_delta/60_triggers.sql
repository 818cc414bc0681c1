-- The four trigger functions of a model. Made by track and refresh, owned by concord's owner, executable by nobody once
-- the triggers stand: else a role could attach them to a table of its own and write another table's log.
create function concord_internal.trigger_function(model integer, op text)
returns text
language sql
immutable
return format('concord_internal.model_%s_%s', model, op);

create function concord_internal.make_trigger_functions(m concord_internal.models)
returns void
language plpgsql
as $$
declare
  columns constant jsonb := concord_internal.columns_of(m.rel);
  shape constant bigint[] := concord_internal.shape(m.rel);
  statement text;
  alone text;
  pins text := '';
  op text;
begin
  -- Keys, tenants, groups and old values are logged as text that is the same in every session. Settings are pinned only
  -- where a type needs it. (An enum's text depends on none.)
  pins := (select coalesce(string_agg(distinct pin, ''), '')
             from jsonb_each(columns) c,
                  lateral (values (' set timezone = ''UTC''', 'timestamp with'), (' set timezone = ''UTC''', 'time with'),
                                  (' set timezone = ''UTC''', 'tstz'), (' set datestyle = ''ISO, YMD''', 'range'),
                                  (' set datestyle = ''ISO, YMD''', 'date[]'), (' set datestyle = ''ISO, YMD''', 'zone[]'),
                                  (' set extra_float_digits = 1', 'double'), (' set extra_float_digits = 1', 'real'),
                                  (' set bytea_output = ''hex''', 'bytea'), (' set intervalstyle = ''postgres''', 'interval')) p(pin, type)
            where (m.detail = 'before' or c.key = any (m.key_columns) or c.key = m.tenant_column
                   or c.key in (select concord_internal.template_columns(m.groups)))
              and (strpos(c.value->>'t', p.type) > 0
                   or c.value ? 'foreign' and exists (select from pg_attribute a join pg_type t on t.oid = a.atttypid
                                                       where a.attrelid = m.rel and a.attname = c.key and t.typtype <> 'e')));
  perform concord_internal.make_awake_function(m.id, not m.paused);
  foreach op in array array['insert', 'update', 'delete'] loop
    statement := concord_internal.delta_statement(m, m.rel, op, true);
    alone := concord_internal.delta_statement(m, m.rel, op, true, alone => true);
    perform concord_internal.make_trigger_function(m.id, op, pins, format($body$
#variable_conflict use_variable
declare
  fits boolean;
  many bigint;                 -- rows, up to 2; of an UPDATE the old ones: a new one may be swallowed on its way to another partition
  by_kind "char" := 's';       -- nobody: system, by the login's name
  by_actor text := session_user;
  for_whom text;
  by_epoch integer;
  m concord_internal.models;
  statement text;
  locked text;
  beside name[];               -- of these fields one delta tells for all rows
begin
  select count(*), coalesce(case when tg_relid = %3$s then concord_internal.shape_when_planned(%3$s) = %4$L end,
                            concord_internal.same_columns(tg_relid, %4$L))
    into many, fits from (select from %5$s limit 2) r where %9$s();
  if many = 0 then
    return null;
  end if;
  if current_setting('concord.acting', true) <> '' or current_setting('concord.session', true) <> ''
     or current_setting('request.jwt.claims', true) <> '' then
    select a.kind, a.actor, a.on_behalf_of into by_kind, by_actor, for_whom from concord_internal.author() a;
  end if;
  by_epoch := concord_internal.epoch();  -- after the row that fired this got its xid (see 40_token/10_epoch)
%10$s  if not fits or beside is not null then
    select * into m from concord_internal.models where id = %1$s;
    if concord_internal.snapshot_shows_columns(tg_relid) then
      statement := concord_internal.delta_statement(m, tg_relid, %2$L, false, beside => beside);
    end if;
    if statement is null then
      perform concord_internal.write_whole_delta(%1$s);
    else
      execute 'with d as (' || statement || ' returning tenant, key, grp)
        select concord_internal.lock_touched(%1$s, array_agg(d.tenant), array_agg(d.key), array_agg(d.grp))
          from d where current_setting(''concord.committing'', true) = ''1''' using by_kind, by_actor, for_whom, by_epoch;
      if beside is not null then
        perform concord_internal.write_whole_delta(%1$s, 'u', beside);
      end if;
    end if;
  elsif current_setting('concord.committing', true) = '1' and concord_internal.may_lock(2) then  -- what changes indirectly
%6$s    with d as (%8$s returning tenant, key, grp)
    select concord_internal.lock_touched(%1$s, array_agg(d.tenant), array_agg(d.key), array_agg(d.grp)) into statement from d;
  else
%7$s    %8$s;
  end if;
  return null;
end$body$, m.id, op, m.rel::oid, shape, case op when 'insert' then 'new_rows' else 'old_rows' end,
      case when alone is not null or cardinality(m.groups) <= 1 then concord_internal.when_alone(coalesce(alone, statement)
        || format(' returning pg_advisory_xact_lock(concord_internal.row_lock(%s, key)),'
                  ' pg_advisory_xact_lock_shared(concord_internal.group_lock(tenant, grp)) into statement, locked', m.id)) else '' end,
      case when alone is not null then concord_internal.when_alone(alone) else '' end, statement, concord_internal.trigger_function(m.id, 'awake'),
      case op when 'update' then format($bulk$  if many > 1 and current_setting('concord.bulk', true) <> '' then
    beside := concord_internal.bulk_fields(%s, by_epoch);
  end if;
$bulk$, m.id) else '' end));
  end loop;
  perform concord_internal.make_trigger_function(m.id, 'truncate', '', format($body$
begin
  if %2$s() then
    perform concord_internal.write_whole_delta(%1$s, 't');
  end if;
  return null;
end$body$, m.id, concord_internal.trigger_function(m.id, 'awake')));
end
$$;

create function concord_internal.when_alone(statement text)
returns text
language sql
immutable
return format($once$    if many = 1 then
      %s;
      if found then
        return null;
      end if;
    end if;
$once$, statement);

-- Whether the triggers log: a function that is only the answer, so that it is inlined, and that pause and resume replace,
-- which makes every plan anew that it was inlined in. A look at models would cost a third of the whole trigger.
create function concord_internal.make_awake_function(model integer, awake boolean)
returns void
language plpgsql
as $$
begin
  execute format('create or replace function %1$s() returns boolean language sql stable return %2$s',
                 concord_internal.trigger_function(model, 'awake'), awake::text);
  execute format('revoke all on function %s() from public', concord_internal.trigger_function(model, 'awake'));
end
$$;

create function concord_internal.make_trigger_function(model integer, op text, pins text, body text)
returns void
language plpgsql
as $$
begin
  -- The body as a literal: it holds names and texts of users, which could end any dollar quote.
  execute format('create or replace function %s() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp%s as %L',
                 concord_internal.trigger_function(model, op), pins, body);
  execute format('revoke all on function %s() from public', concord_internal.trigger_function(model, op));
end
$$;

-- The relations that carry a model's triggers: the table, and every partition, since a write straight into a partition
-- fires only that partition's triggers.
create function concord_internal.relations_of(rel regclass)
returns setof regclass
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select rel
  union
  select relid from pg_partition_tree(rel)
$$;

-- Those of them which lack one of the four, or have another model''s (a tracked table that was attached as a partition).
create function concord_internal.bare_relations(rel regclass)
returns setof regclass
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  made constant oid[] := array(
    select to_regprocedure(concord_internal.trigger_function(m.id, op) || '()')
      from concord_internal.models m, unnest(array['insert', 'update', 'delete', 'truncate']) op where m.rel = bare_relations.rel);
begin
  return query
    select r from concord_internal.relations_of(rel) r
     where 4 > (select count(*) from pg_trigger t
                 where t.tgrelid = r and not t.tgisinternal and t.tgfoid = any (made)
                   and t.tgname in ('concord_insert', 'concord_update', 'concord_delete', 'concord_truncate'));
end
$$;

-- Those that the log does not answer for: they are bare, or (said of the table itself) altered in a way that it can''t tell.
create function concord_internal.relations_without_triggers(rel regclass)
returns setof regclass
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select r from concord_internal.bare_relations(rel) r
    union all
    select m.rel from concord_internal.models m where m.rel = relations_without_triggers.rel and (concord_internal.altered(m)).how is not null;
end
$$;

-- Runs as the caller, who owns the table. Each trigger has its own events: a statement-level trigger with transition
-- tables may have only one.
create function concord_internal.add_triggers(model integer, rel regclass)
returns void
language plpgsql
as $$
begin
  execute format('create or replace trigger concord_insert after insert on %s referencing new table as new_rows for each statement execute function %s()',
                 rel, concord_internal.trigger_function(model, 'insert'));
  execute format('create or replace trigger concord_update after update on %s referencing old table as old_rows new table as new_rows for each statement execute function %s()',
                 rel, concord_internal.trigger_function(model, 'update'));
  execute format('create or replace trigger concord_delete after delete on %s referencing old table as old_rows for each statement execute function %s()',
                 rel, concord_internal.trigger_function(model, 'delete'));
  execute format('create or replace trigger concord_truncate after truncate on %s for each statement execute function %s()',
                 rel, concord_internal.trigger_function(model, 'truncate'));
end
$$;

select concord_internal.open_to('concord_internal.trigger_function(integer,text)', 'public');
select concord_internal.open_to('concord_internal.make_trigger_functions(concord_internal.models)');
select concord_internal.open_to('concord_internal.make_awake_function(integer,boolean)');
select concord_internal.open_to('concord_internal.when_alone(text)');
select concord_internal.open_to('concord_internal.make_trigger_function(integer,text,text,text)');
select concord_internal.open_to('concord_internal.relations_of(regclass)', 'public');
select concord_internal.open_to('concord_internal.bare_relations(regclass)', 'public');
select concord_internal.open_to('concord_internal.relations_without_triggers(regclass)', 'public');
select concord_internal.open_to('concord_internal.add_triggers(integer,regclass)', 'public');
