-- track and its inverses are invoker functions: the triggers are made with the table owner's own rights, and what needs
-- concord's rights sits in definer helpers that check the ownership again.

-- Keeps writers out of the table and its partitions, briefly: nobody who writes under the old definition is in flight
-- when the new one begins; alone: readers too. Bounded, so that it never queues the application behind itself.
create function concord_internal.lock_table(rel regclass, alone boolean default false)
returns void
language plpgsql
as $$
declare
  was constant text := current_setting('lock_timeout');
begin
  perform set_config('lock_timeout', concord_internal.setting('lock_timeout'), true);
  execute format('lock table %s in %s mode', rel, case when alone then 'access exclusive' else 'share row exclusive' end);
  perform set_config('lock_timeout', was, true);
end
$$;

create function concord.track(rel regclass, name text default null, tenant_column name default null, tenant text default null,
  groups text[] default '{}', ignore_fields name[] default '{}', secret_fields name[] default '{}', detail text default 'before',
  on_stale jsonb default null, archive_column name default null)
returns jsonb
language plpgsql
as $$
declare
  m constant concord_internal.models := concord_internal.track_model(rel, name, tenant_column, tenant, groups, ignore_fields, secret_fields, detail, on_stale,
                                                                       archive_column);
begin
  return to_jsonb(m) - array['columns', 'signature', 'marks', 'named', 'plain', 'horizon_epoch', 'horizon_xid'];
end
$$;
comment on function concord.track(regclass, text, name, text, text[], name[], name[], text, jsonb, name) is
  'Makes a table a model: triggers log every changed row from now on. Idempotent; other arguments change the model in
place (all of them: what is not passed goes back to its default). Owner of the table only.
name: public name, default the table''s, unique per tenant. One that another table has for all tenants (or, when this one is
for all, for any) can be given by who owns both, a superuser or the owner of the database; so can a kind of group that another
model has for the same tenant or for all. tenant_column: the column that says whose a row is; tenant: one tenant for the whole
table; neither: shared. groups: templates such as deck:{deck_id}; a row with a null there is in none.
ignore_fields: never conflict, make no delta by themselves. secret_fields: named in the log, never valued.
detail: names, or before (also the old values of changed fields). on_stale: default mode per kind of principal, such as
{"agent": "notify"}. archive_column: a timestamptz, null in rows that are not put away; operations archive and unarchive write it. Returns the model as JSON. Takes SHARE ROW EXCLUSIVE on the table, bounded by lock_timeout.
Errors: invalid_request (param names the argument), forbidden, contended.';

-- On a search_path of its own: see lend_trigger_functions.
create function concord_internal.track_model(rel regclass, name text, tenant_column name, tenant text, groups text[], ignore_fields name[],
  secret_fields name[], detail text, on_stale jsonb, archive_column name)
returns concord_internal.models
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  m concord_internal.models;
  part regclass;
begin
  if rel is null or to_regclass(rel::text) is null then
    perform concord_internal.fail('invalid_request', 'rel', 'no such table');
  end if;
  perform concord_internal.demand_owner(rel);
  if exists (select from pg_class where oid = rel and relkind in ('r', 'p')) then
    perform concord_internal.lock_table(rel);
  end if;
  m := concord_internal.define_model(rel, name, tenant_column, tenant, groups, ignore_fields, secret_fields, detail, on_stale, archive_column);
  for part in select r from concord_internal.bare_relations(rel) r loop
    perform concord_internal.add_triggers(m.id, part);
  end loop;
  perform concord_internal.seal_model(rel);
  return m;
end
$$;

create function concord.untrack(rel regclass)
returns void
language plpgsql
as $$
declare
  was_timeout constant text := current_setting('lock_timeout');
  model boolean;
  t record;
  left_over text[] := '{}';
begin
  model := not concord_internal.only_left_over(rel);
  if model then
    perform concord_internal.demand_model(rel);
  end if;
  perform concord_internal.lock_table(rel);
  perform set_config('lock_timeout', concord_internal.setting('lock_timeout'), true);
  for t in select * from concord_internal.triggers_made_for(rel) loop
    if concord_internal.owns(t.rel) then
      execute format('drop trigger %I on %s', t.name, t.rel);
    else
      left_over := left_over || format('drop trigger %I on %s;', t.name, t.rel);
    end if;
  end loop;
  perform set_config('lock_timeout', was_timeout, true);
  if model then
    perform concord_internal.forget_model(rel);
  end if;
  if left_over <> '{}' then
    raise warning 'concord: % is untracked, and % triggers of its model stay on tables of somebody else''s: they do nothing any more', rel, cardinality(left_over)
      using hint = 'Their owners can take them off: ' || array_to_string(left_over, ' ');
  end if;
end
$$;
comment on function concord.untrack(regclass) is
  'Takes the triggers off again, also from partitions that were detached with them, and forgets the model; the table is as it
was. What the log holds of it is no longer answered for. A trigger on a table that the caller does not own stays, does nothing
any more, and is named in a warning. On a table that is no model and has such triggers, it takes them off. Owner of the table
only. Errors: model_unknown, forbidden, contended.';

-- The triggers that use the functions of a table's model, wherever they are: a partition keeps them when it is detached, and somebody
-- may have made others. Of a table that is no model: those that it has of any.
create function concord_internal.triggers_made_for(rel regclass)
returns table (name name, rel regclass)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select t.tgname, t.tgrelid::regclass
    from pg_trigger t join pg_proc p on p.oid = t.tgfoid
    left join concord_internal.models m on m.rel = triggers_made_for.rel
   where not t.tgisinternal and p.pronamespace = 'concord_internal'::regnamespace
     and case when m.id is null then t.tgrelid = triggers_made_for.rel and p.proname like 'model\_%'
              else p.proname = any (array(select 'model_' || m.id || '_' || op from unnest(array['insert', 'update', 'delete', 'truncate']) op)) end
   order by t.tgrelid::regclass::text, t.tgname
$$;

-- Is this no model, but a table that triggers of one were left on? Else null or false.
create function concord_internal.only_left_over(rel regclass)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select concord_internal.owns(rel) and not exists (select from concord_internal.models m where m.rel = only_left_over.rel)
     and exists (select from concord_internal.triggers_made_for(rel))
$$;

create function concord_internal.forget_model(rel regclass)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  gone concord_internal.models;
begin
  perform concord_internal.demand_owner(rel);
  delete from concord_internal.models m where m.rel = forget_model.rel returning * into gone;
  perform concord_internal.clear_away(gone);
end
$$;

-- Models whose table was dropped. Their triggers went with it, less those of partitions that had been detached.
create function concord_internal.prune_models()
returns bigint
language plpgsql
as $$
declare
  gone concord_internal.models;
  pruned bigint := 0;
begin
  for gone in
    delete from concord_internal.models m where not exists (select from pg_class c where c.oid = m.rel) returning m.*
  loop
    perform concord_internal.clear_away(gone);
    pruned := pruned + 1;
  end loop;
  perform concord_internal.clear_functions(u.id)
     from (select distinct split_part(p.proname::text, '_', 2)::integer as id from pg_proc p
            where p.pronamespace = 'concord_internal'::regnamespace and p.proname ~ '^model_[0-9]+_') u
    where not exists (select from concord_internal.models m where m.id = u.id);
  return pruned;
end
$$;

-- What else there was of a model. A group premise may rest on rows that went: the group's horizon tells.
create function concord_internal.clear_away(gone concord_internal.models)
returns void
language plpgsql
as $$
begin
  perform concord_internal.move_group_horizon(gone.tenant, gone.groups);
  perform concord_internal.clear_functions(gone.id);
  perform concord_internal.drop_plain_functions(gone.id);
end
$$;

-- The functions of a model that is gone. Those that some table's trigger still uses sleep, until maintain finds that it is gone too.
create function concord_internal.clear_functions(model integer)
returns void
language plpgsql
as $$
declare
  op text;
  used boolean := false;
begin
  foreach op in array array['insert', 'update', 'delete', 'truncate'] loop
    if exists (select from pg_trigger t where t.tgfoid = to_regprocedure(concord_internal.trigger_function(model, op) || '()')) then
      used := true;
    else
      execute format('drop function if exists %s()', concord_internal.trigger_function(model, op));
    end if;
  end loop;
  if used then
    perform concord_internal.make_awake_function(model, false);
  else
    execute format('drop function if exists %s()', concord_internal.trigger_function(model, 'awake'));
  end if;
end
$$;

-- Raises unless the caller owns the table and it is tracked.
create function concord_internal.demand_model(rel regclass)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if rel is null then
    perform concord_internal.fail('invalid_request', 'rel', 'no such table');
  end if;
  perform concord_internal.demand_owner(rel);
  if not exists (select from concord_internal.models m where m.rel = demand_model.rel) then
    perform concord_internal.fail('model_unknown', 'rel', format('%s is not tracked', rel));
  end if;
end
$$;

create function concord.pause(rel regclass)
returns void
language plpgsql
as $$
begin
  perform concord_internal.demand_model(rel);
  perform concord_internal.lock_table(rel);
  perform concord_internal.set_paused(rel, true);
end
$$;
comment on function concord.pause(regclass) is
  'The switch for three in the morning: the triggers log nothing until resume, so what is written meanwhile is in no history
and no feed. Guarded writes and premises on the model are answered model_changed, and so are premises on every group of a kind
that it has, whatever other models are in it; unguarded writes go on. Nothing of the table changes. Takes SHARE ROW EXCLUSIVE
on the table, bounded by lock_timeout. Owner of the table only. Errors: model_unknown, forbidden, contended.';

create function concord.resume(rel regclass)
returns void
language plpgsql
as $$
begin
  perform concord_internal.demand_model(rel);
  perform concord_internal.lock_table(rel);
  perform concord_internal.set_paused(rel, false);
end
$$;
comment on function concord.resume(regclass) is
  'Ends pause. Tokens from before it are model_changed: the log does not know what happened meanwhile.
Owner of the table only. Errors: model_unknown, forbidden, contended.';

create function concord_internal.set_paused(rel regclass, paused boolean)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m concord_internal.models;
begin
  perform concord_internal.demand_owner(rel);
  select * into m from concord_internal.models o where o.rel = set_paused.rel;
  perform concord_internal.make_awake_function(m.id, not paused);
  if m.paused and not paused then
    perform concord_internal.move_group_horizon(m.tenant, m.groups);
  end if;
  update concord_internal.models o
     set paused = set_paused.paused,
         horizon_epoch = case when o.paused and not set_paused.paused then concord_internal.epoch() else o.horizon_epoch end,
         horizon_xid = case when o.paused and not set_paused.paused then pg_current_xact_id() else o.horizon_xid end
   where o.id = m.id;
end
$$;

create function concord.refresh(rel regclass default null)
returns void
language plpgsql
as $$
declare
  r regclass;
begin
  if rel is not null then
    perform concord_internal.demand_model(rel);
    perform concord_internal.refresh_model(rel);
  else
    for r in select m.rel from concord_internal.owned_models() m loop
      perform concord_internal.refresh_model(r);
    end loop;
  end if;
end
$$;
comment on function concord.refresh(regclass) is
  'Makes a model''s triggers anew from the columns as they are, and gives new partitions theirs; null: every model that the
caller owns. Without a lock on the table, unless a column''s type, collation or generation, or the key, changed, or a partition
lacks its triggers (then SHARE ROW EXCLUSIVE, and tokens from before are model_changed, or meet a whole-model change).
Owner of the table only. Errors: model_unknown, forbidden, contended.';

create function concord_internal.refresh_model(rel regclass)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  part regclass;
  model integer;
begin
  if exists (select from concord_internal.relations_without_triggers(rel)) or concord_internal.needs_horizon(rel) then
    perform concord_internal.lock_table(rel);
  end if;
  model := concord_internal.redefine_model(rel);
  for part in select r from concord_internal.bare_relations(rel) r loop
    perform concord_internal.add_triggers(model, part);
  end loop;
  perform concord_internal.seal_model(rel);
end
$$;

create function concord_internal.owned_models()
returns table (rel regclass)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select m.rel from concord_internal.models m join pg_class c on c.oid = m.rel where concord_internal.owns(m.rel) order by m.id
$$;

create function concord_internal.needs_horizon(rel regclass)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(bool_or(m.key_columns <> concord_internal.key_columns_of(m.rel)
                          or (concord_internal.altered(m)).how = 'column'
                          or concord_internal.retyped(m.columns, concord_internal.columns_of(m.rel)) is not null), false)
    from concord_internal.models m where m.rel = needs_horizon.rel and concord_internal.owns(m.rel)
$$;

-- The same definition over the live columns. A renamed column is still ignored, or secret, under its new name (known by
-- its position); one that is gone leaves the lists.
create function concord_internal.redefine_model(rel regclass)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m concord_internal.models;
  live constant jsonb := concord_internal.columns_of(rel);
begin
  perform concord_internal.demand_owner(rel);
  select * into m from concord_internal.models o where o.rel = redefine_model.rel;
  m := concord_internal.define_model(rel, m.name, m.tenant_column, m.tenant, m.groups,
    concord_internal.live_names(m.ignore_fields, m.columns, live),
    concord_internal.live_names(m.secret_fields, m.columns, live), m.detail, m.on_stale,
    (concord_internal.live_names(array_remove(array[m.archive_column], null), m.columns, live))[1]);
  return m.id;
end
$$;

create function concord_internal.live_names(names name[], was jsonb, live jsonb)
returns name[]
language sql
immutable
as $$
  select coalesce(array_agg(coalesce(case when live ? f::text then f end, renamed.c) order by f), '{}')
    from unnest(names) f
    left join lateral (select c::name from jsonb_object_keys(live) c
                        where not was ? c and live->c->'n' = was->(f::text)->'n') renamed(c) on true
   where live ? f::text or renamed.c is not null
$$;

select concord_internal.open_to('concord_internal.lock_table(regclass,boolean)', 'public');
select concord_internal.open_to('concord.track(regclass,text,name,text,text[],name[],name[],text,jsonb,name)', 'public');
select concord_internal.open_to('concord_internal.track_model(regclass,text,name,text,text[],name[],name[],text,jsonb,name)', 'public');
select concord_internal.open_to('concord.untrack(regclass)', 'public');
select concord_internal.open_to('concord_internal.only_left_over(regclass)', 'public');
select concord_internal.open_to('concord_internal.triggers_made_for(regclass)', 'public');
select concord_internal.open_to('concord_internal.forget_model(regclass)', 'public');
select concord_internal.open_to('concord_internal.demand_model(regclass)', 'public');
select concord_internal.open_to('concord.pause(regclass)', 'public');
select concord_internal.open_to('concord.resume(regclass)', 'public');
select concord_internal.open_to('concord_internal.set_paused(regclass,boolean)', 'public');
select concord_internal.open_to('concord.refresh(regclass)', 'public');
select concord_internal.open_to('concord_internal.refresh_model(regclass)', 'public');
select concord_internal.open_to('concord_internal.owned_models()', 'public');
select concord_internal.open_to('concord_internal.needs_horizon(regclass)', 'public');
select concord_internal.open_to('concord_internal.redefine_model(regclass)', 'public');
select concord_internal.open_to('concord_internal.live_names(name[],jsonb,jsonb)');
select concord_internal.open_to('concord_internal.prune_models()');
select concord_internal.open_to('concord_internal.clear_away(concord_internal.models)');
select concord_internal.open_to('concord_internal.clear_functions(integer)');
