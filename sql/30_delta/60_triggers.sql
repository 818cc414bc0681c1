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
  signature constant bigint[] := concord_internal.signature(m.rel);
  statement text;
  body text;
  pins text := '';
  op text;
begin
  -- Old values are logged as text that is the same in every session. Settings are pinned only where a type needs it.
  if m.detail = 'before' then
    pins := (select coalesce(string_agg(distinct pin, ''), '')
               from jsonb_each(columns) c,
                    lateral (values (' set timezone = ''UTC''', 'timestamp with'), (' set timezone = ''UTC''', 'time with'),
                                    (' set timezone = ''UTC''', 'tstz'), (' set datestyle = ''ISO, YMD''', 'range'),
                                    (' set extra_float_digits = 1', 'double'), (' set extra_float_digits = 1', 'real'),
                                    (' set bytea_output = ''hex''', 'bytea'), (' set intervalstyle = ''postgres''', 'interval')) p(pin, type)
              where strpos(c.value->>'t', p.type) > 0 or c.value ? 'foreign');
  end if;
  foreach op in array array['insert', 'update', 'delete', 'truncate'] loop
    if op = 'truncate' then
      body := format('  if fits is not null then perform concord_internal.write_whole_delta(%s, ''t''); end if;', m.id);
    else
      statement := concord_internal.delta_statement(m, m.rel, op, true);
      body := format($body$
  if fits is null then
    return null;
  end if;
  if current_setting('concord.acting', true) <> '' then
    select a.kind, a.actor, a.on_behalf_of into by_kind, by_actor, for_whom from concord_internal.author() a;
  end if;
  if not fits then
    select * into m from concord_internal.models where id = %1$s;
    statement := concord_internal.delta_statement(m, tg_relid, %2$L, false);
    if statement is null then
      perform concord_internal.write_whole_delta(%1$s);
    else
      execute 'with d as (' || statement || ' returning tenant, key, grp)
        select concord_internal.lock_touched(%1$s, array_agg(d.tenant), array_agg(d.key), array_agg(d.grp))
          from d where current_setting(''concord.committing'', true) = ''1''' using by_kind, by_actor, for_whom;
    end if;
  elsif current_setting('concord.committing', true) = '1' then  -- inside a commit: its locks for what changes indirectly
    with d as (%3$s returning tenant, key, grp)
    select concord_internal.lock_touched(%1$s, array_agg(d.tenant), array_agg(d.key), array_agg(d.grp)) into statement from d;
  else
    %3$s;
  end if;$body$, m.id, op, statement);
    end if;
    execute format($function$
create or replace function %1$s() returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp%5$s as $trigger$
declare
  fits constant boolean := concord_internal.trigger_fits(%2$s, tg_relid, %3$L);
  m concord_internal.models;
  statement text;
  by_kind "char" := 's';       -- nobody: system, by the login's name
  by_actor text := session_user;
  for_whom text;
begin
%4$s
  return null;
end
$trigger$
$function$, concord_internal.trigger_function(m.id, op), m.id, signature, body, pins);
    execute format('revoke all on function %s() from public', concord_internal.trigger_function(m.id, op));
  end loop;
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

-- Those of them which lack one of the four.
create function concord_internal.relations_without_triggers(rel regclass)
returns setof regclass
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select r from concord_internal.relations_of(rel) r
   where 4 > (select count(*) from pg_trigger t
               where t.tgrelid = r and not t.tgisinternal
                 and t.tgname in ('concord_insert', 'concord_update', 'concord_delete', 'concord_truncate'))
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
select concord_internal.open_to('concord_internal.relations_of(regclass)', 'public');
select concord_internal.open_to('concord_internal.relations_without_triggers(regclass)', 'public');
select concord_internal.open_to('concord_internal.add_triggers(integer,regclass)', 'public');
