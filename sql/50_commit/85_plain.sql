-- The plain commit: one guarded or unguarded update of some fields of one row, nothing unusual about it, nobody touched the
-- row; as a client sends it, or an ORM that echoes a whole object (onlyChanged) and wants the row back (returning). It goes through the same steps (lock, judge, write, record) with the same locks and the same look at the log, in as
-- few statements as will do, because most commits are plain. It answers only when there is nothing to tell: whenever
-- anything is out of the ordinary it returns null, having written nothing, and the long way judges anew and says what.
--
-- What makes it quick: each model has a generated function whose statements are planned once for a session, where the long
-- way builds and plans its statements for each request (40 µs apiece).
create type concord_internal.plain_commit as (
  model integer, tenant text,
  id text,                   -- of a shape that the key's type takes, not yet canonical
  data jsonb,                -- of shapes that the fields' types take
  only_changed boolean, want_row boolean,
  t concord_internal.token,
  unguarded boolean,
  lock_timeout text,
  call text                  -- $1 this; returns what the receipt tells of the operation, when the row was written
);

-- Does a column of this type take the value, for sure? (A leap day, a number that may be too large: not for sure.) Every one
-- of these types takes null. In PL/pgSQL, where each case is an expression that is prepared once: as a query it took 20 µs.
create function concord_internal.fits_plainly(type text, value jsonb)
returns boolean
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  day constant text := '[1-9][0-9]{3}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)';
  digits text[];
  precision integer;
begin
  case
    when type in ('text', 'jsonb') then
      return strpos(value::text, '$operation') = 0;
    when type ~ '^character varying(\([0-9]+\))?$' then
      return jsonb_typeof(value) in ('string', 'null')
        and coalesce(length(value #>> '{}') <= coalesce(substring(type, '\d+')::integer, 10485760), true);
    when type = 'smallint' then
      return value::text ~ '^(-?[0-9]{1,4}|null)$';
    when type = 'integer' then
      return value::text ~ '^(-?[0-9]{1,9}|null)$';
    when type = 'bigint' then
      return value::text ~ '^(-?[0-9]{1,18}|null)$';
    when type = 'numeric' then
      return value::text ~ '^(-?[0-9]{1,50}(\.[0-9]{1,50})?|null)$';
    when type = 'double precision' then
      return value::text ~ '^(-?[0-9]{1,15}(\.[0-9]{1,15})?|null)$';
    when type = 'boolean' then
      return value in ('true', 'false', 'null');
    when type = 'uuid' then
      return value::text ~ '^("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"|null)$';
    when type = 'date' then
      return value::text ~ ('^("' || day || '"|null)$');
    when type = 'timestamp with time zone' then
      return value::text ~ ('^("' || day ||
        '[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?([+-](0[0-9]|1[0-2])(:[0-5][0-9])?|Z)"|null)$');
    when starts_with(type, 'numeric(') then
      digits := regexp_match(type, '^numeric\(([0-9]+),([1-9][0-9]*)\)$');
      precision := digits[1]::integer - digits[2]::integer;
      return precision > 0
        and value::text ~ format('^(-?[0-9]{1,%s}(\.[0-9]{1,%s})?|null)$', least(precision, 200), least(digits[2]::integer, 200));
    else
      return null;
  end case;
end
$$;

create function concord_internal.plain_context(given jsonb)
returns concord_internal.plain_commit
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  e constant jsonb := given->'operations'->0;
  who concord.principal;
  c concord_internal.plain_commit;
begin
  -- (A comparison with what is not there is null, and then it is not plain.)
  if (jsonb_typeof(given) = 'object' and jsonb_typeof(given->'operations') = 'array' and jsonb_typeof(e) = 'object'
      and given - array['readAt', 'onStale', 'onlyChanged', 'returning', 'operations'] = '{}' and jsonb_array_length(given->'operations') = 1
      and e->'type' = '"update"' and e - array['type', 'model', 'id', 'data', 'readAt', 'onStale'] = '{}'
      and coalesce(given->'onStale', '"reject"') in ('"reject"', '"overwrite"', '"notify"')
      and coalesce(e->'onStale', '"reject"') in ('"reject"', '"overwrite"', '"notify"')
      and coalesce(jsonb_typeof(given->'readAt'), 'string') = 'string' and coalesce(jsonb_typeof(e->'readAt'), 'string') = 'string'
      and coalesce(given->'onlyChanged', 'false') in ('true', 'false') and coalesce(given->'returning', 'false') in ('true', 'false')
      and jsonb_typeof(e->'id') in ('string', 'number') and jsonb_typeof(e->'data') = 'object' and e->'data' <> '{}') is not true then
    return null;
  end if;
  who := concord.principal();
  if who.id is null or concord_internal.is_narrowed() then
    return null;
  end if;
  c.unguarded := not (given ? 'readAt' or e ? 'readAt');
  c.t := concord_internal.parse_token(case when c.unguarded then concord.capture() else coalesce(e->>'readAt', given->>'readAt') end);
  if (c.t).problem is not null then
    return null;
  end if;
  c.tenant := who.tenant;
  c.id := e->>'id';
  c.data := e->'data';
  c.only_changed := coalesce((given->'onlyChanged')::boolean, false);
  c.want_row := coalesce((given->'returning')::boolean, false);
  select m.id, concord_internal.setting('lock_timeout'), 'select ' || concord_internal.trigger_function(m.id, 'plain') || '($1)'
    into c.model, c.lock_timeout, c.call
    from (select o.* from concord_internal.models o  -- the tenant's own before a shared one, plain or not
           where o.name = e->>'model' and o.tenant in (who.tenant, '') and exists (select from pg_class where oid = o.rel)
           order by o.tenant desc limit 1) m
   where m.plain and m.named = m.rel::text
     and (not c.only_changed or not c.unguarded and m.detail = 'before' and not c.data ?| m.secret_fields::text[])
     and case m.columns->(m.key_columns[1]::text)->>'t'
           when 'integer' then c.id ~ '^-?[0-9]{1,9}$' when 'bigint' then c.id ~ '^-?[0-9]{1,18}$'
           when 'text' then jsonb_typeof(e->'id') = 'string'
           when 'uuid' then c.id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' end
     and not exists (select from jsonb_each(c.data) d
                      where (d.key <> m.key_columns[1] and not m.columns->d.key ? 'g'
                             and concord_internal.fits_plainly(m.columns->d.key->>'t', d.value)) is not true);
  return c;
end
$$;

-- Has anything happened to the row, to its whole model, or to the model itself, that the token has not seen? Asked once the
-- locks are held. The newest delta of the row answers, as in moved_rows: also when it is an own one, which then is for the
-- long way.
create function concord_internal.plain_moved(c concord_internal.plain_commit, row_key text)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
declare
  t constant concord_internal.token := c.t;
begin
  return not exists (
           select from concord_internal.models m
            where m.id = c.model and m.plain and not m.paused and has_any_column_privilege(concord_internal.caller(), m.rel, 'select')
              and not (m.horizon_epoch = t.epoch and m.horizon_xid >= t.xmax or m.horizon_xid = any (t.xip)))
      or exists (select from (
           select d.epoch, d.xid, d.owner from concord_internal.deltas d
            where concord_internal.is_of_row(d.model, d.key, c.model, row_key)
              and (d.tenant = '' or d.tenant = (select (concord.principal()).tenant))
              and (d.epoch >= case when t.xip = '{}' then t.epoch else 0 end and d.xid >= t.xmin or d.owner is not null)
            order by d.seq desc limit 1) newest
           where newest.epoch = t.epoch and newest.xid >= t.xmax or newest.xid = any (t.xip)
              or case when newest.owner is not null then newest.owner <> concord_internal.owner_in(c.model) end)
      or exists (select from concord_internal.deltas d
                  where d.key is null and d.op <> 'g' and d.model = c.model and d.xid >= t.xmin
                    and d.epoch >= case when t.xip = '{}' then t.epoch else 0 end
                    and (d.epoch = t.epoch and d.xid >= t.xmax or d.xid = any (t.xip)));
end
$$;

-- Could a model have plain commits? A table with very many columns would make a very long function.
create function concord_internal.is_plain(m concord_internal.models)
returns boolean
language sql
immutable
as $$
  select not m.partitioned and cardinality(m.key_columns) = 1
     and m.columns->(m.key_columns[1]::text)->>'t' in ('integer', 'bigint', 'text', 'uuid')
     and (select count(*) <= 100 from jsonb_object_keys(m.columns))
$$;

-- A field's value, of the commit's data.
create function concord_internal.plain_value(data text, field text, type text)
returns text
language sql
immutable
return format(case type when 'jsonb'
  then 'case when pg_catalog.jsonb_typeof(%1$s operator(pg_catalog.->) %2$L) operator(pg_catalog.<>) ''null'' then %1$s operator(pg_catalog.->) %2$L end'
  else '(%1$s operator(pg_catalog.->>) %2$L)::%3$s' end, data, field, type);

-- A model's functions: to lock, look and write, as the caller; and to read the row as it is shown in every session. The first
-- names what it was made for, so it first asks whether that still is so, in a query that holds the table's lock from there on:
-- no column comes, goes or changes until the transaction ends.
-- (See 30_delta/30_context for why the answer is a constant of the plan.) Names may come to mean
-- another table, by ALTER SCHEMA also under a lock: so each statement tells which table it was. (It is not asked for in WHERE:
-- a row that was waited for is looked at again without it.) With a tenant column only the principal's rows: a row of another tenant is not there.
-- From the first statement to the last it runs under the caller's search_path (see 40_lock), and names operators in full.
-- Called directly, with any arguments, they are an UPDATE and a SELECT that the caller could have written.
--
-- onlyChanged takes no look into the log: nothing has moved, so what the row holds is what it held at the token. An update of
-- one field has a statement of its own; of several, one is built, so that columns that are not written are not named in it
-- (privileges and UPDATE OF triggers go by that).
create function concord_internal.make_plain_functions(m concord_internal.models)
returns void
language plpgsql
as $$
declare
  key constant text := quote_ident(m.key_columns[1]);
  key_type constant text := m.columns->(m.key_columns[1]::text)->>'t';
  key_text constant text := 't.' || key || case key_type when 'text' then '' else '::text' end;
  name constant text := concord_internal.trigger_function(m.id, 'plain');
  row_name constant text := concord_internal.trigger_function(m.id, 'row');
  wall constant text := case when m.tenant_column is null then '' else format('coalesce(%s, '''') operator(pg_catalog.=) c.tenant and ',
    concord_internal.stable_text(format('t.%I', m.tenant_column), m.columns->(m.tenant_column::text)->>'t')) end;
  writes text;
  pieces text;
  differences text;
  made regprocedure;
begin
  select string_agg(format($write$
      when %1$L then
        update %2$s t set %1$I = %3$s
         where t.%4$s operator(pg_catalog.=) row_key::%5$s returning %6$s, t.tableoid into row_key, place;$write$,
             f, m.named, concord_internal.plain_value('c.data', f, type), key, key_type, key_text), '' order by n),
         string_agg(format($piece$
      case when %1$L operator(pg_catalog.=) any (fields) then %2$L end$piece$,
             f, format('%I = %s', f, concord_internal.plain_value('$1', f, type))), ',' order by n),
         string_agg(format($difference$
        case when pg_catalog.jsonb_exists(c.data, %1$L) and pg_catalog.record_image_ne(row(t.%1$I), row(%2$s)) then %1$L end$difference$,
             f, concord_internal.plain_value('c.data', f, type)), ',' order by n)
    into writes, pieces, differences
    from (select f, m.columns->f->>'t' as type, (m.columns->f->>'n')::integer as n from jsonb_object_keys(m.columns) f
           where concord_internal.fits_plainly(m.columns->f->>'t', 'null') and not m.columns->f ? 'g' and f <> m.key_columns[1]) u;
  if not m.plain or writes is null then
    perform concord_internal.drop_plain_functions(m.id);
    return;
  end if;
  -- The bodies as literals: they hold names and texts of users, which could end any dollar quote.
  execute format('create or replace function %s(c concord_internal.plain_commit) returns jsonb language plpgsql as %L', name,
    format($function$
#variable_conflict use_variable
declare
  was_timeout constant text := pg_catalog.current_setting('lock_timeout');
  was_path constant text := pg_catalog.current_setting('search_path');
  fits boolean;
  row_key text;
  covered text := '1';
  place pg_catalog.oid;
  fields text[];
  ignored text;
  written integer;
  told jsonb;
begin
  ignored := pg_catalog.set_config('search_path', concord_internal.callers_path(), true);
  ignored := pg_catalog.set_config('lock_timeout', c.lock_timeout, true);
  select %2$L::pg_catalog.regclass::pg_catalog.oid operator(pg_catalog.=) %11$s and concord_internal.signature_when_planned(%11$s) operator(pg_catalog.=) %3$L
    into fits from (select) as one_row left join only %4$s as t on false;
  -- What is compared or shown is read: the long way knows what to make of columns that the caller may not see.
  if fits and (not c.only_changed and not c.want_row or pg_catalog.has_table_privilege(%11$s::pg_catalog.oid, 'select')) then
    select %5$s, t.tableoid into row_key, place from %4$s t where %6$st.%7$s operator(pg_catalog.=) (c.id)::%8$s for no key update of t;
  end if;
  if place operator(pg_catalog.<>) %11$s then
    row_key := null;
  end if;
  if row_key is not null then
    if pg_catalog.current_setting('concord.committing', true) operator(pg_catalog.=) 'all' then
      covered := 'all';  -- by locks of this transaction
    else
      perform pg_catalog.pg_advisory_xact_lock_shared(concord_internal.tenant_lock('')),
              pg_catalog.pg_advisory_xact_lock_shared(concord_internal.tenant_lock(c.tenant)),
              pg_catalog.pg_advisory_xact_lock(concord_internal.row_lock(%9$s, row_key));
    end if;
    if not c.unguarded and concord_internal.plain_moved(c, row_key) then
      row_key := null;
    elsif c.only_changed then
      select t.tableoid, pg_catalog.array_remove(array[%13$s
        ], null) into place, fields from %4$s t where t.%7$s operator(pg_catalog.=) row_key::%8$s;
      if fields is null or pg_catalog.cardinality(fields) operator(pg_catalog.=) 0 or place operator(pg_catalog.<>) %11$s then
        row_key := null;
      end if;
    else
      fields := array(select pg_catalog.jsonb_object_keys(c.data));
    end if;
  end if;
  if row_key is null then
    ignored := pg_catalog.set_config('lock_timeout', was_timeout, true);
    ignored := pg_catalog.set_config('search_path', was_path, true);
    return null;
  end if;
  ignored := pg_catalog.set_config('concord.committing', covered, true);
  if pg_catalog.cardinality(fields) operator(pg_catalog.=) 1 then
    case fields[1]%10$s
    end case;
  else
    execute pg_catalog.concat(%14$L, pg_catalog.array_to_string(array[%12$s
    ], ', '), %15$L) into row_key, place using c.data, row_key;
  end if;
  get diagnostics written = row_count;
  if written operator(pg_catalog.<>) 1 then
    perform concord_internal.fail('forbidden', 'operations[0]', 'the row was not written: a policy or a trigger of the table stopped it');
  elsif place operator(pg_catalog.<>) %11$s then
    raise serialization_failure using message = 'another table came to have this one''s name meanwhile: try again';
  end if;
  told := pg_catalog.jsonb_build_object('index', 0, 'outcome', 'applied', 'id', row_key);
  if c.want_row then
    told := told operator(pg_catalog.||) pg_catalog.jsonb_build_object('data', %16$s(c, row_key));
  end if;
  ignored := pg_catalog.set_config('lock_timeout', was_timeout, true);
  ignored := pg_catalog.set_config('search_path', was_path, true);
  return told;
end
$function$, name, m.named, m.signature, m.named, key_text, wall, key, key_type, m.id, writes, m.rel::oid, pieces, differences,
      format('update %s t set ', m.named),
      format(' where t.%s operator(pg_catalog.=) $2::%s returning %s, t.tableoid', key, key_type, key_text), row_name));
  execute format('create or replace function %s(c concord_internal.plain_commit, row_key text) returns jsonb language plpgsql stable '
                 'set timezone = %L set datestyle = %L set extra_float_digits = 1 set bytea_output = %L set intervalstyle = %L as %L',
    row_name, 'UTC', 'ISO, YMD', 'hex', 'postgres', format($function$
#variable_conflict use_variable
begin
  return (select %s from %s t where %st.%s operator(pg_catalog.=) row_key::%s);
end
$function$, concord_internal.json_object_expression(m, array(select f from jsonb_object_keys(m.columns) f order by (m.columns->f->>'n')::integer), 't'),
      m.named, wall, key, key_type));
  foreach made in array array[(name || '(concord_internal.plain_commit)')::regprocedure, (row_name || '(concord_internal.plain_commit,text)')::regprocedure] loop
    perform concord_internal.open_to(made, 'concord_app');
    if to_regrole('concord_app') is not null then
      execute format('grant execute on function %s to concord_app', made);
    end if;
  end loop;
end
$$;

create function concord_internal.drop_plain_functions(model integer)
returns void
language plpgsql
as $$
declare
  made text;
begin
  foreach made in array array[concord_internal.trigger_function(model, 'plain') || '(concord_internal.plain_commit)',
                              concord_internal.trigger_function(model, 'row') || '(concord_internal.plain_commit,text)'] loop
    execute 'drop function if exists ' || made;
    delete from concord_internal.openings o where o.thing = made;
  end loop;
end
$$;

create function concord_internal.run_plain(given jsonb)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  c concord_internal.plain_commit := concord_internal.plain_context(given);
  commit_id uuid;
  told jsonb;
  before_seq bigint;
  seq bigint;
begin
  if c.model is null then
    return null;
  end if;
  before_seq := concord_internal.last_delta_seq();
  execute c.call into told using c;
  if told is null then
    return null;
  end if;
  commit_id := gen_random_uuid();
  seq := concord_internal.record_commit(commit_id, before_seq, null, null, null, null, null, null);
  return jsonb_build_object(
    'object', 'commit_receipt', 'id', commit_id, 'status', 'confirmed', 'replayed', false,
    'syncId', case when seq > before_seq then seq end,
    'readAt', concord_internal.extend_token(c.t, case when seq > before_seq then pg_current_xact_id() end, seq),
    'applied', 1, 'held', 0, 'unchanged', 0,
    'operations', jsonb_build_array(told), 'notifications', '[]'::jsonb);
end
$$;

select concord_internal.open_to('concord_internal.plain_context(jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.plain_moved(concord_internal.plain_commit,text)', 'concord_app');
select concord_internal.open_to('concord_internal.is_plain(concord_internal.models)');
select concord_internal.open_to('concord_internal.fits_plainly(text,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.plain_value(text,text,text)');
select concord_internal.open_to('concord_internal.make_plain_functions(concord_internal.models)');
select concord_internal.open_to('concord_internal.drop_plain_functions(integer)');
select concord_internal.open_to('concord_internal.run_plain(jsonb)', 'concord_app');
