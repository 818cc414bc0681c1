-- The definer's half of track: everything that is wrong is said here, by parameter; the row in models is written here.
-- Returns the model; the caller's half makes the triggers with the table owner's own rights.
create function concord_internal.define_model(rel regclass, name text, tenant_column name, tenant text, groups text[],
  ignore_fields name[], secret_fields name[], detail text, on_stale jsonb, archive_column name)
returns concord_internal.models
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  class pg_class;
  columns jsonb;
  keys name[];
  bad text;
  was concord_internal.models;
  m concord_internal.models;
  drifted text;
  stack text;
begin
  get diagnostics stack = pg_context;
  perform concord_internal.demand_owner(rel);
  select * into class from pg_class where oid = rel;
  bad := case
    when class.relkind in ('v', 'm') then 'a view can''t be tracked: track the tables under it'
    when class.relkind = 'f' then 'a foreign table can''t be tracked: its rows change where no trigger here fires'
    when class.relkind not in ('r', 'p') then 'only a table can be tracked'
    when class.relpersistence = 't' then 'a temporary table can''t be tracked: no other session sees it'
    when class.relispartition then 'this is a partition: track the partitioned table, whose partitions are tracked with it'
    when class.relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace,
                                'concord'::regnamespace, 'concord_internal'::regnamespace) then 'a system table can''t be tracked'
    when class.relkind = 'r' and exists (select from pg_inherits where inhparent = rel or inhrelid = rel)
      then 'a table in an inheritance tree can''t be tracked: its key is not unique over its children'
    when exists (select from pg_subscription_rel where srrelid = rel)
      then 'a subscribed table can''t be tracked: replication applies rows without firing triggers'
  end;
  if bad is not null then
    perform concord_internal.fail('invalid_request', 'rel', bad);
  end if;

  columns := concord_internal.columns_of(rel);
  keys := concord_internal.key_columns_of(rel);
  if keys is null then
    perform concord_internal.fail('invalid_request', 'rel', 'the table has no primary key: a row has to be known by something');
  end if;
  if exists (select from pg_index where indrelid = rel and indisprimary and not indimmediate) then
    perform concord_internal.fail('invalid_request', 'rel', 'the primary key is DEFERRABLE: two rows may share an id until commit');
  end if;
  select string_agg(quote_ident(k) || ' ' || (columns->(k::text)->>'t'), ', ') into bad
    from unnest(keys) k where not concord_internal.usable_as_key(rel, k, columns->(k::text));
  if bad is not null then
    perform concord_internal.fail('invalid_request', 'rel', format(
      'equal values of this key can look different (%s): use integers, uuid, text under a deterministic collation, dates, timestamps, booleans, bytea or an enum', bad));
  end if;

  name := coalesce(name, class.relname);
  tenant := coalesce(tenant, '');
  groups := coalesce(groups, '{}');
  ignore_fields := coalesce(ignore_fields, '{}');
  secret_fields := coalesce(secret_fields, '{}');
  on_stale := coalesce(on_stale, '{}');
  if name = '' or length(name) > 255 then
    perform concord_internal.fail('invalid_request', 'name', 'one to 255 characters');
  end if;
  if name = 'comments/v1' and not exists (select from concord_internal.protections p where p.rel = define_model.rel and p.contract = name) then
    perform concord_internal.fail('invalid_request', 'name', 'this name is reserved for tables of that contract: see concord.create_comments');
  end if;
  if length(tenant) > 255 then
    perform concord_internal.fail('invalid_request', 'tenant', 'at most 255 characters');
  end if;
  if detail is null or detail not in ('names', 'before') then
    perform concord_internal.fail('invalid_request', 'detail', 'one of names, before');
  end if;
  if tenant_column is not null and tenant <> '' then
    perform concord_internal.fail('invalid_request', 'tenant', 'a table has a tenant column or one tenant for all its rows, not both');
  end if;
  if tenant_column is not null and not columns ? tenant_column::text then
    perform concord_internal.fail('invalid_request', 'tenant_column', format('no column %I', tenant_column));
  end if;
  for bad in select f from unnest(ignore_fields) f where f is null or not columns ? f::text
                or f = any (keys) or f = tenant_column or f in (select concord_internal.template_columns(groups)) loop
    perform concord_internal.fail('invalid_request', 'ignore_fields',
      format('%s is not a column, or belongs to the key, the tenant or a group', coalesce(quote_ident(bad), 'null')));
  end loop;
  for bad in select f from unnest(secret_fields) f where f is null or not columns ? f::text
                or f = any (keys) or f = tenant_column or exists (select from unnest(groups) g where strpos(g, '{' || f || '}') > 0) loop
    perform concord_internal.fail('invalid_request', 'secret_fields',
      format('%s is not a column, or belongs to the key, the tenant or a group, which are logged', coalesce(quote_ident(bad), 'null')));
  end loop;
  for bad in select g from unnest(groups) g where g is null or g !~ '^[^:{}]+:([^{}]|\{[^{}]+\})+$'
                or exists (select from concord_internal.template_columns(array[g]) c where not columns ? c or columns->c->>'g' = 'v') loop
    perform concord_internal.fail('invalid_request', 'groups',
      format('%s is not a template like deck:{deck_id} over columns of the table', coalesce(quote_literal(bad), 'null')));
  end loop;
  if jsonb_typeof(on_stale) <> 'object' or exists (select from jsonb_each(on_stale) e
       where e.key not in ('user', 'agent', 'system') or e.value not in ('"reject"', '"overwrite"', '"notify"')) then
    perform concord_internal.fail('invalid_request', 'on_stale', 'an object from user, agent, system to reject, overwrite or notify');
  end if;

  if archive_column is not null and ((columns->(archive_column::text)->>'t') is distinct from 'timestamp with time zone'
       or columns->(archive_column::text) ? 'g' or archive_column = any (keys) or archive_column = any (ignore_fields)
       or (select attnotnull from pg_attribute where attrelid = rel and attname = archive_column)) then
    perform concord_internal.fail('invalid_request', 'archive_column',
      format('%I is not a nullable timestamptz, or is generated, ignored, or of the key', archive_column));
  end if;

  perform concord_internal.prune_models();  -- of dropped tables, whose names are free again
  if exists (select from concord_internal.models o where o.name = define_model.name and o.tenant = define_model.tenant and o.rel <> define_model.rel) then
    perform concord_internal.fail('invalid_request', 'name', format('another table is tracked as %s', quote_literal(name)));
  end if;

  select * into was from concord_internal.models o where o.rel = define_model.rel;
  perform concord_internal.demand_names(rel, was, name, tenant, groups);
  drifted := case when was.id is null then null when exists (select from concord_internal.bare_relations(rel)) then 'partitions'
                  else (concord_internal.altered(was)).how end;
  m := was;
  m.rel := rel; m.name := name; m.tenant := tenant; m.tenant_column := tenant_column; m.groups := groups;
  m.ignore_fields := ignore_fields; m.secret_fields := secret_fields; m.detail := detail; m.on_stale := on_stale; m.archive_column := archive_column;
  m.partitioned := class.relkind = 'p';
  m.key_columns := keys; m.columns := columns; m.signature := concord_internal.signature(rel);
  m.any_value := concord_internal.any_value_columns(columns);
  m.named := rel::text;
  m.marks := concord_internal.marks_of(rel);
  -- (What a commit finds out about an enum's labels it asks where the plain way does not look.)
  m.plain := concord_internal.is_plain(m) and not coalesce(m.marks->'labels' ? tenant_column::text, false);
  if was.id is null then
    m.id := nextval('concord_internal.model_id');
    m.paused := false;
    m.tracked_at := now();
  end if;
  if was.id is null or concord_internal.answers_differently(was, m) or drifted in ('column', 'inheritance') then
    m.horizon_epoch := concord_internal.epoch();
    m.horizon_xid := pg_current_xact_id();
    perform concord_internal.move_group_horizon(tenant, coalesce(was.groups, '{}') || groups);
    if was.tenant <> tenant then
      perform concord_internal.move_group_horizon(was.tenant, was.groups);
    end if;
  end if;
  delete from concord_internal.models o where o.id = was.id;
  insert into concord_internal.models select m.*;
  perform concord_internal.make_trigger_functions(m);
  perform concord_internal.make_plain_functions(m);
  if drifted = 'partitions' then
    perform concord_internal.write_whole_delta(m.id);
  end if;
  if concord_internal.called_by(stack, 'concord_internal.define_model', 'concord_internal.track_model')
     or concord_internal.called_by(stack, 'concord_internal.define_model', 'concord_internal.redefine_model', 'concord_internal.refresh_model') then
    perform concord_internal.lend_trigger_functions(m.id);
  end if;
  return m;
end
$$;

-- A name is found by the tenants that it holds for, and a group premise rests on every model of its kind: so who joins what
-- others use must own that too. Else one table's owner could get the commits that are meant for another, or disturb
-- everybody's premises by writing to, or pausing, a table of its own. Asked when something is new, not of a refresh. The locks: of two that come at
-- once one sees the other; which in a fixed snapshot it would not.
create function concord_internal.demand_names(rel regclass, was concord_internal.models, name text, tenant text, groups text[])
returns void
language plpgsql
as $$
declare
  moved constant boolean := was.id is null or was.tenant <> tenant;
  was_timeout constant text := current_setting('lock_timeout');
  kinds constant text[] := array(
    select split_part(g, ':', 1) from unnest(groups) g
    except
    select split_part(g, ':', 1) from unnest(was.groups) g where not moved);
  taken text;
begin
  if not moved and was.name = name and kinds = '{}' then
    return;
  end if;
  perform set_config('lock_timeout', concord_internal.setting('lock_timeout'), true);
  perform pg_advisory_xact_lock(u.id)
     from (select distinct hashtextextended(w, -4) as id from unnest('name ' || name || array(select 'kind ' || k from unnest(kinds) k)) w order by 1) u;
  perform set_config('lock_timeout', was_timeout, true);
  if concord_internal.is_admin() then
    return;
  elsif current_setting('transaction_isolation') <> 'read committed' then
    perform concord_internal.fail('invalid_request', 'isolation',
      'a new name or kind of group needs READ COMMITTED: in a fixed snapshot it can''t be seen whether others use it');
  end if;
  if (moved or was.name <> name) and exists (
       select from concord_internal.models o
        where o.name = demand_names.name and o.rel <> demand_names.rel and '' in (o.tenant, demand_names.tenant)
          and not concord_internal.owns(o.rel)) then
    perform concord_internal.fail('invalid_request', 'name',
      format('%L is the name of a table of somebody else''s for other tenants: only who owns both, or an administrator, may give it to this one, too', name));
  end if;
  select k into taken from unnest(kinds) k
   where exists (select from concord_internal.models o, unnest(o.groups) g
                  where split_part(g, ':', 1) = k and o.rel <> demand_names.rel
                    and (o.tenant = demand_names.tenant or '' in (o.tenant, demand_names.tenant)) and not concord_internal.owns(o.rel))
   limit 1;
  if taken is not null then
    perform concord_internal.fail('invalid_request', 'groups',
      format('groups of kind %L hold rows of a table of somebody else''s: only who owns both, or an administrator, may let this one join them', taken));
  end if;
end
$$;

-- Who called a function, by its call stack (get diagnostics … = pg_context): whoever calls it next, from plain assignments,
-- so that no text of a statement, which a caller could choose, stands between. A function of such a qualified name can't be
-- made by a role that may not create in the schema, and odd names appear quoted. The words before the name are those of the first line,
-- whatever the language of messages. The callers pin search_path, else they would appear without their schema where it is in it.
-- A call stack whose functions of this schema stand without quotes, as without quote_all_identifiers. (Quotes inside an odd
-- name are doubled, so none of those becomes one of ours.)
create function concord_internal.bare_stack(stack text)
returns text
language sql
immutable
return case when strpos(stack, '"concord_internal"."') > 0
            then regexp_replace(stack, '"concord_internal"\."([a-z_]+)"\(', 'concord_internal.\1(', 'g') else stack end;

create function concord_internal.called_by(stack text, me text, variadic callers text[])
returns boolean
language sql
immutable
as $$
  select words <> '' and starts_with(s.stack, words || me || '(')
     and (select bool_and(starts_with(split_part(s.stack, E'\n', n::integer + 1), words || caller || '('))
            from unnest(callers) with ordinality c(caller, n))
    from concord_internal.bare_stack(stack) s(stack), split_part(split_part(s.stack, E'\n', 1), me || '(', 1) w(words)
$$;

-- Is equality of this key column identity, and its text the same in every session?
create function concord_internal.usable_as_key(rel oid, col name, def jsonb)
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive base(typ, coll) as (
    select a.atttypid, a.attcollation from pg_attribute a where a.attrelid = rel and a.attname = col
    union all
    select t.typbasetype, base.coll from base join pg_type t on t.oid = base.typ and t.typtype = 'd')
  select bool_or(t.typtype = 'e'
                 or t.oid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype, 'uuid'::regtype, 'bool'::regtype)
                 or t.oid in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'name'::regtype)
                    and def->>'t' <> 'bpchar'    -- without a length: blanks at the end are kept, and do not count
                    and coalesce((select c.collisdeterministic from pg_collation c where c.oid = base.coll), false)
                 or t.oid in ('date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype, 'bytea'::regtype)
                    and def->>'t' !~ '\.')   -- not through a domain: its text would follow the session's settings
    from base join pg_type t on t.oid = base.typ and t.typtype <> 'd'
$$;

-- The first column whose type, collation or generation differs, or that took another's name; a column that is in one of
-- them only does not count. A name has moved when its column has another position; but a restore closes the gaps that
-- dropped columns left, so where all names are the same only their order counts.
create function concord_internal.retyped(was jsonb, live jsonb)
returns text
language sql
immutable
as $$
  select min(c)
    from (select k as c, rank() over (order by (was->k->>'n')::integer) as old_rank, rank() over (order by (live->k->>'n')::integer) as new_rank
            from jsonb_object_keys(was) k where live ? k) u
   where (was->c->'t', was->c->'c', was->c->'g') is distinct from (live->c->'t', live->c->'c', live->c->'g')
      or old_rank <> new_rank
      or (was->c->'n' <> live->c->'n' and not (select bool_and(live ? k) and count(*) = (select count(*) from jsonb_object_keys(live))
                                                 from jsonb_object_keys(was) k))
$$;

-- Would deltas of the one definition answer a check under the other? If not, older tokens can't be answered.
create function concord_internal.answers_differently(was concord_internal.models, m concord_internal.models)
returns boolean
language sql
immutable
as $$
  select was.groups <> m.groups or was.ignore_fields <> m.ignore_fields or was.key_columns <> m.key_columns
      or was.tenant <> m.tenant or was.tenant_column is distinct from m.tenant_column
      or concord_internal.retyped(was.columns, m.columns) is not null
$$;

-- CREATE TRIGGER wants EXECUTE on the function. The table's owner has it between these two calls and never else: track_model and
-- refresh_model make both, and nothing of the owner's runs between them (they pin search_path). A define_model of the owner's
-- own lends nothing.
create function concord_internal.lend_trigger_functions(model integer)
returns void
language plpgsql
as $$
declare
  op text;
begin
  foreach op in array array['insert', 'update', 'delete', 'truncate'] loop
    execute format('grant execute on function %s() to %I', concord_internal.trigger_function(model, op), concord_internal.caller());
  end loop;
end
$$;

create function concord_internal.seal_model(rel regclass)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  model integer;
  grantee record;
  op text;
begin
  perform concord_internal.demand_owner(rel);
  select id into model from concord_internal.models m where m.rel = seal_model.rel;
  foreach op in array array['insert', 'update', 'delete', 'truncate'] loop
    for grantee in
      select a.grantee::regrole as role from pg_proc p, aclexplode(p.proacl) a
       where p.oid = to_regprocedure(concord_internal.trigger_function(model, op) || '()') and a.grantee <> p.proowner
    loop
      execute format('revoke all on function %s() from %s', concord_internal.trigger_function(model, op), grantee.role);
    end loop;
  end loop;
  -- A tracked table that was attached as a partition is a model no more: its triggers are this one's now.
  perform concord_internal.forget_model(m.rel) from concord_internal.models m
   where m.rel <> seal_model.rel and m.rel in (select relid from pg_partition_tree(seal_model.rel));
end
$$;

select concord_internal.open_to('concord_internal.define_model(regclass,text,name,text,text[],name[],name[],text,jsonb,name)', 'public');
select concord_internal.open_to('concord_internal.demand_names(regclass,concord_internal.models,text,text,text[])');
select concord_internal.open_to('concord_internal.bare_stack(text)');
select concord_internal.open_to('concord_internal.called_by(text,text,text[])');
select concord_internal.open_to('concord_internal.usable_as_key(oid,name,jsonb)');
select concord_internal.open_to('concord_internal.answers_differently(concord_internal.models,concord_internal.models)');
select concord_internal.open_to('concord_internal.retyped(jsonb,jsonb)', 'public');
select concord_internal.open_to('concord_internal.lend_trigger_functions(integer)');
select concord_internal.open_to('concord_internal.seal_model(regclass)', 'public');
