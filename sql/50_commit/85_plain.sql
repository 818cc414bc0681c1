-- The plain commit: one guarded or unguarded update of one row, nothing unusual about it, nobody touched the row. It goes
-- through the same steps (lock, judge, write, record) with the same locks and the same look at the log, in as few
-- statements as will do, because most commits are plain. It answers only when there is nothing to tell: whenever anything
-- is out of the ordinary it returns null, having written nothing, and the long way judges anew and says what.
create type concord_internal.plain_commit as (
  model integer, tenant text, kind text,
  t concord_internal.token,
  horizon xid8, signature bigint[],
  lock_statement text,       -- $1 the id as text; returns the canonical key
  write_statement text,      -- $1 the key, $2 the data
  lock_timeout text
);

create function concord_internal.plain_context(given jsonb, e jsonb)
returns concord_internal.plain_commit
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  who concord.principal;
  c concord_internal.plain_commit;
  token constant text := coalesce(e->>'readAt', given->>'readAt');
  t concord_internal.token;
begin
  if jsonb_typeof(e) is distinct from 'object' then  -- whatever else it is, it is not plain
    return null;
  end if;
  if jsonb_array_length(given->'operations') <> 1 or given - array['readAt', 'onStale', 'operations'] <> '{}'
     or e->>'type' <> 'update' or e - array['type', 'model', 'id', 'data', 'readAt', 'onStale'] <> '{}'
     or coalesce(e->>'onStale', given->>'onStale', 'reject') not in ('reject', 'overwrite', 'notify')
     or jsonb_typeof(given->'onStale') not in ('string', 'null') or jsonb_typeof(e->'onStale') not in ('string', 'null')
     or jsonb_typeof(given->'readAt') not in ('string', 'null') or jsonb_typeof(e->'readAt') not in ('string', 'null')
     or jsonb_typeof(e->'id') not in ('string', 'number') or jsonb_typeof(e->'data') <> 'object' or e->'data' = '{}'
     or strpos(e::text, '$operation') > 0 then
    return null;
  end if;
  who := concord.principal();
  if who.id is null then
    return null;
  end if;
  if token is not null then
    t := concord_internal.parse_token(token);
    if t.problem is not null then
      return null;
    end if;
  end if;
  select m.id,
         'select ' || case k.t when 'text' then 't.' || k.c else 't.' || k.c || '::text' end || ' from ' || m.rel || ' t where '
           || case when m.tenant_column is null then '' else format('(%s) = %L and ',
                concord_internal.stable_text('t.' || quote_ident(m.tenant_column), m.columns->(m.tenant_column::text)->>'t'), who.tenant) end
           || 't.' || k.c || ' = $1::' || k.t || ' for no key update of t',
         'update ' || m.rel || ' t set ' || f.sets || ' from jsonb_to_record($2) v(' || f.types || ') where t.' || k.c || ' = $1::' || k.t
         , m.horizon_xid, m.signature
    into c.model, c.lock_statement, c.write_statement, c.horizon, c.signature
    from concord_internal.models m,
         lateral (select quote_ident(m.key_columns[1]) as c, m.columns->(m.key_columns[1]::text)->>'t' as t) k,
         lateral (select string_agg(quote_ident(d.key) || ' = v.' || quote_ident(d.key), ', ') as sets,
                         string_agg(quote_ident(d.key) || ' ' || (m.columns->d.key->>'t'), ', ') as types,
                         bool_and(d.key = any (m.any_value) or not m.columns->d.key ? 'g'
                                  and case m.columns->d.key->>'t' when 'integer' then d.value::text ~ '^-?\d{1,9}$'
                                                                  when 'bigint' then d.value::text ~ '^-?\d{1,18}$'
                                                                  when 'boolean' then d.value in ('true', 'false') end) as fit
                    from jsonb_each(e->'data') d) f
   where m.name = e->>'model' and m.tenant in (who.tenant, '') and not m.paused and not m.partitioned and cardinality(m.key_columns) = 1
     and case k.t when 'integer' then e->>'id' ~ '^-?\d{1,9}$' when 'bigint' then e->>'id' ~ '^-?\d{1,18}$'
                  when 'text' then jsonb_typeof(e->'id') = 'string'
                  when 'uuid' then e->>'id' ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' end
     and f.fit
     and (token is null or m.horizon_epoch < t.epoch and not m.horizon_xid = any (t.xip)
          or m.horizon_epoch = t.epoch and m.horizon_xid < t.xmax and not m.horizon_xid = any (t.xip))
     and m.signature = array(
       select hashnameextended(a.attname, (a.atttypid::bigint << 32 | a.attcollation::bigint) + a.attgenerated::integer)
         from pg_attribute a where a.attrelid = m.rel and a.attnum > 0 and not a.attisdropped order by a.attnum)
   order by m.tenant desc limit 1;
  c.t := t;
  c.tenant := who.tenant;
  c.lock_timeout := concord_internal.setting('lock_timeout');
  return c;
end
$$;

-- Has anything happened to the row, or to its whole model, that the token's snapshot has not seen?
-- Or to the model itself: its definition is looked at again, now that the locks are held.
create function concord_internal.plain_moved(c concord_internal.plain_commit, row_key text, t concord_internal.token)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off
as $$
begin
  -- (Transactions in progress when the token was taken are for the long way; the own one is not judged at all.)
  return array_remove(t.xip, pg_current_xact_id_if_assigned()) <> '{}'
      or not exists (
           select from concord_internal.models m
            where m.id = c.model and has_any_column_privilege(concord_internal.caller(), m.rel, 'select') and not m.paused and m.horizon_xid = c.horizon and m.signature = c.signature
              and m.signature = array(
                select hashnameextended(a.attname, (a.atttypid::bigint << 32 | a.attcollation::bigint) + a.attgenerated::integer)
                  from pg_attribute a where a.attrelid = m.rel and a.attnum > 0 and not a.attisdropped order by a.attnum))
      or exists (select from (
           select d.epoch, d.xid from concord_internal.deltas d
            where hashtextextended(d.key, d.model::bigint) = hashtextextended(row_key, (c.model)::bigint)
              and d.key is not null and d.key = row_key and d.model = c.model
              and (d.tenant = '' or d.tenant = (select (concord.principal()).tenant))
              and d.epoch >= t.epoch and d.xid >= t.xmin
            order by d.seq desc limit 1) newest where newest.xid >= t.xmax)
      or exists (select from concord_internal.deltas d
                  where d.key is null and d.op <> 'g' and d.model = c.model and d.epoch >= t.epoch and d.xid >= t.xmax);
end
$$;

create function concord_internal.run_plain(given jsonb)
returns jsonb
language plpgsql
as $$
declare
  e constant jsonb := case when jsonb_typeof(given->'operations') = 'array' then given->'operations'->0 end;
  c concord_internal.plain_commit;
  t concord_internal.token;
  row_key text;
  written integer;
  was_timeout constant text := current_setting('lock_timeout');
  was_committing constant text := coalesce(current_setting('concord.committing', true), '');
  commit_id constant uuid := gen_random_uuid();
  before_seq bigint;
  after_seq bigint;
  recorded boolean;
begin
  c := concord_internal.plain_context(given, e);
  if c.model is null then
    return null;
  end if;
  perform set_config('lock_timeout', c.lock_timeout, true);
  execute c.lock_statement into row_key using e->>'id';
  if row_key is null then
    perform set_config('lock_timeout', was_timeout, true);
    return null;
  end if;
  perform pg_advisory_xact_lock_shared(concord_internal.tenant_lock('')), pg_advisory_xact_lock_shared(concord_internal.tenant_lock(c.tenant)),
          pg_advisory_xact_lock(concord_internal.row_lock(c.model, row_key));
  t := c.t;
  if t.xmax is null then  -- unguarded: what counts is this moment
    t := concord_internal.parse_token(concord_internal.observed_now());
  end if;
  if concord_internal.plain_moved(c, row_key, t) then
    perform set_config('lock_timeout', was_timeout, true);
    return null;
  end if;
  before_seq := concord_internal.last_delta_seq();
  perform set_config('concord.committing', '1', true);
  execute c.write_statement using row_key, e->'data';
  get diagnostics written = row_count;
  if written <> 1 then
    perform concord_internal.fail('forbidden', 'operations[0]', 'the row was not written: a policy or a trigger of the table stopped it');
  end if;
  perform set_config('concord.committing', was_committing, true), set_config('lock_timeout', was_timeout, true);
  after_seq := concord_internal.last_delta_seq();
  recorded := concord_internal.record_commit(commit_id, before_seq, after_seq, null, null, null, null, null);
  return jsonb_build_object(
    'object', 'commit_receipt', 'id', commit_id, 'status', 'confirmed', 'replayed', false,
    'syncId', case when after_seq > before_seq then after_seq end,
    'readAt', concord_internal.extend_token(t, case when after_seq > before_seq then pg_current_xact_id() end, after_seq),
    'applied', 1, 'held', 0, 'unchanged', 0,
    'operations', jsonb_build_array(jsonb_build_object('index', 0, 'outcome', 'applied', 'id', row_key)), 'notifications', '[]'::jsonb);
end
$$;

select concord_internal.open_to('concord_internal.plain_context(jsonb,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.plain_moved(concord_internal.plain_commit,text,concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.run_plain(jsonb)', 'concord_app');
