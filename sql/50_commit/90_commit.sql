-- The story of a commit: parse, resolve, lock, judge, write, record, answer. All as the caller. `path` and `schemas` are the
-- caller's search_path, and what it comes to; see 40_lock for who uses which.
--
-- concord.committing stays on until the transaction ends: a deferred trigger fires when everything here is over, and what
-- it changes belongs to the commit. 'all' says that the locks held cover every key.
create function concord_internal.run_commit(given jsonb, path text, schemas name[])
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  answer jsonb;
  was_timeout constant text := current_setting('lock_timeout');
  was_path constant text := coalesce(current_setting('concord.path', true), '');
begin
  -- In the caller's path nothing may stand before pg_catalog: names of types are looked up there.
  if array_to_string(schemas, ',') !~ '^(pg_temp_[0-9]+,)?pg_catalog(,|$)' then
    return concord_internal.refusal('invalid_request', 'search_path', 'search_path lists pg_catalog behind another schema: leave it out, and it comes first');
  elsif current_setting('transaction_isolation') <> 'read committed' then
    return concord_internal.refusal('invalid_request', 'isolation',
      'commit needs READ COMMITTED: in a fixed snapshot it could not see what it has to judge');
  elsif current_setting('transaction_read_only')::boolean then
    return concord_internal.refusal('invalid_request', 'isolation', 'commit needs a transaction that may write');
  end if;
  perform set_config('concord.path', path, true);  -- a trigger may commit too: the outer one's comes back
  answer := concord_internal.run_plain(given);
  if answer is null then
    -- Waits are bounded; the caller's own bound comes back: set_config would keep ours for its whole transaction.
    perform set_config('lock_timeout', concord_internal.setting('lock_timeout'), true);
    answer := concord_internal.run_whole(given);
    perform set_config('lock_timeout', was_timeout, true);
  end if;
  perform set_config('concord.path', was_path, true);
  return answer;
end
$$;

-- What a narrowed session asks for and may not have. A premise reads: of a group what is in any table that has such groups.
create function concord_internal.beyond_session(r concord_internal.request)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  beyond record;
begin
  if not concord_internal.may_be_narrowed() then
    return null;
  end if;
  select u.path, u.what into beyond from (
      select 0 as part, o.n, format('operations[%s]', o.n) as path, o.model || '.' || o.type as what
        from unnest(r.operations) o where not concord_internal.session_may(o.model, o.type)
      union all
      select 1, p.n, format('reads[%s]', p.n), coalesce(p.grp, p.model || '.read')
        from unnest(r.premises) p
       where case when p.grp is null then not concord_internal.session_may(p.model, 'read')
                  else not concord_internal.session_may_see_group(p.grp) end) u
   order by u.part, u.n limit 1;
  if beyond.path is null then
    return null;
  end if;
  return concord_internal.refusal('forbidden', beyond.path, format('this session was not minted for %s', beyond.what));
end
$$;

create function concord_internal.session_may_see_group(grp text)
returns boolean
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(grp = any (concord_internal.session_groups()), true)
     and not exists (select from concord_internal.models m
                      where m.tenant in ((select (concord.principal()).tenant), '') and not concord_internal.session_may(m.name, 'read')
                        and exists (select from unnest(m.groups) g where split_part(g, ':', 1) = split_part(grp, ':', 1)))
$$;

create function concord_internal.run_whole(given jsonb)
returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  r concord_internal.request := concord_internal.parse_request(given);
  who constant concord.principal := concord.principal();
  named concord_internal.models[];
  models concord_internal.models[];
  refusal jsonb;
  texts text[];
  tokens concord_internal.token[];
  seen concord_internal.token;
  judged_at concord_internal.token;
  locked record;
  verdict record;
  written concord_internal.request;
  changed integer;
  commit_id constant uuid := gen_random_uuid();
  before_seq bigint;
  after_seq bigint;
  receipt jsonb;
  held_rows jsonb;
begin
  if r.refusal is not null then
    return r.refusal;
  elsif who.id is null then
    return concord_internal.refusal('unauthenticated');
  end if;
  r.refusal := concord_internal.beyond_session(r);
  if r.refusal is not null then
    return r.refusal;
  elsif r.idempotency_key is not null then
    receipt := concord_internal.replay(r.idempotency_key, given);
    if receipt is not null then
      return receipt;
    end if;
  end if;

  for attempt in 1 .. 5 loop
    -- models, columns, ids, values; with a lock on each table, so that its columns stay what we take them for
    named := concord_internal.models_named(r.model_names);
    for i in 1 .. cardinality(named) loop
      if (named[i]).id is not null and has_any_column_privilege((named[i]).rel, 'select') then
        execute format('select from %s limit 0', (named[i]).rel);
      end if;
    end loop;
    named := concord_internal.models_named(r.model_names);  -- the table's lock may have been waited for, too
    models := concord_internal.live_models(named);
    for i in 1 .. cardinality(models) loop
      if (models[i]).id is null or i = changed and attempt = 5 then
        return concord_internal.refusal(case when (named[i]).id is null then 'model_unknown' else 'model_changed' end,
          concord_internal.first_use(r, r.model_names[i]), null, jsonb_build_object('model', r.model_names[i]));
      end if;
    end loop;
    r := concord_internal.resolve_request(r, models);
    if r.refusal is null then
      -- token
      select * into refusal, texts, tokens from concord_internal.judge_tokens(r, given, models);
      r.refusal := refusal;
    end if;
    if r.refusal is null then
      r.refusal := concord_internal.judge_sight(r, models);
    end if;
    if r.refusal is not null then
      return r.refusal;
    end if;

    -- lock
    select * into locked from concord_internal.lock_request(r, models, who.tenant);
    -- While we waited somebody may have redefined a model. Now that we hold the rows nobody retypes their table.
    named := concord_internal.live_models(concord_internal.models_named(r.model_names));
    exit when named is not distinct from models;
    changed := (select min(i) from generate_series(1, cardinality(models)) i where named[i] is distinct from models[i]);
  end loop;

  for attempt in 1 .. 100 loop
    -- judge
    if concord_internal.deletes_unlocked(r, models) then
      judged_at := concord_internal.parse_token(concord_internal.observed_now());
    end if;
    verdict := concord_internal.judge_request(r, models, locked.present, locked.unlocked, texts, tokens, who.kind, who.tenant);
    if (verdict.r).refusal is not null then
      return (verdict.r).refusal;
    elsif verdict.unlocked_came then
      select * into locked from concord_internal.lock_request(r, models, who.tenant);
      continue;
    end if;
    -- what the answer's token has seen: no more than the request's tokens, or this moment
    if cardinality(tokens) = 0 then
      seen := concord_internal.parse_token(concord_internal.observed_now());
    else
      seen := tokens[1];
      for i in 2 .. cardinality(tokens) loop
        seen := concord_internal.intersect_tokens(seen, tokens[i]);
      end loop;
    end if;

    -- write
    before_seq := concord_internal.last_delta_seq();
    if current_setting('concord.committing', true) is distinct from 'all' then
      perform set_config('concord.committing', case when concord_internal.is_large(r) then 'all' else '1' end, true);
    end if;
    if not concord_internal.deletes_unlocked(verdict.r, models) then
      written := concord_internal.write_request(verdict.r, models, who.tenant);
      exit;
    end if;
    -- Rows that could not be locked are locked now that they are deleted. If somebody got between the judgement and the
    -- delete, it is undone, and judged again.
    begin
      written := concord_internal.write_request(verdict.r, models, who.tenant);
      if concord_internal.deleted_unjudged(written, models, judged_at) then
        raise sqlstate 'KC999';
      end if;
      exit;
    exception when sqlstate 'KC999' or sqlstate 'KC014' then  -- changed, or no more there; or something stops the delete
      if sqlstate = 'KC014' and attempt > 3 then
        raise;
      end if;
      written := null;
      select * into locked from concord_internal.lock_request(r, models, who.tenant);
    end;
  end loop;
  if written is null then
    raise serialization_failure using message = 'rows that can''t be locked changed again and again: try again';
  end if;
  after_seq := concord_internal.last_delta_seq();

  -- answer
  receipt := concord_internal.answer(written, models, commit_id, verdict.notifications, seen, before_seq, after_seq, who.tenant);
  if receipt->'held' <> '0' then
    held_rows := concord_internal.held_entries(written, models);
  end if;
  after_seq := concord_internal.record_commit(commit_id, before_seq, after_seq, r.label, r.idempotency_key, given, receipt, held_rows, models);
  return receipt;
end
$$;

-- What is judged has to be looked at: a model that the login, or the role that it has set, may not select from is refused
-- before anything is locked. (That need not be who commit runs as: see 50_judge.)
create function concord_internal.judge_sight(r concord_internal.request, models concord_internal.models[])
returns jsonb
language plpgsql
stable
as $$
declare
  hidden constant integer := concord_internal.out_of_sight(array(
    select (models[u.m]).id from unnest(r.operations) u where u.token is not null and u.type <> 'create'
    union
    select (models[u.m]).id from unnest(r.premises) u where u.m is not null));
  n integer;
begin
  if hidden is null then
    return null;
  end if;
  n := (select min(i) from generate_series(1, cardinality(models)) i where (models[i]).id = hidden);
  return concord_internal.refusal('forbidden', concord_internal.first_use(r, r.model_names[n]),
    'the login, or the role that it has set, may not select from this table: grant it, or commit as a role that may');
end
$$;

create function concord_internal.deletes_unlocked(r concord_internal.request, models concord_internal.models[])
returns boolean
language plpgsql
stable
as $$
begin
  for i in 1 .. cardinality(models) loop
    if (not has_any_column_privilege((models[i]).rel, 'update') or row_security_active((models[i]).rel))
       and exists (select from unnest(r.operations) o where o.m = i and o.type = 'delete' and o.outcome is null) then
      return true;
    end if;
  end loop;
  return false;
end
$$;

-- Has a deleted row changed since it was judged?
create function concord_internal.deleted_unjudged(r concord_internal.request, models concord_internal.models[], judged_at concord_internal.token)
returns boolean
language plpgsql
as $$
declare
  o concord_internal.operation;
  conflict jsonb;
begin
  foreach o in array r.operations loop
    continue when o.type <> 'delete' or o.outcome is distinct from 'applied'
      or o.condition is null and (o.token is null or o.mode is not distinct from 'overwrite');
    conflict := concord_internal.row_conflict((models[o.m]).id, o.key, null, '{}', judged_at);
    if conflict is not null then
      return true;
    end if;
  end loop;
  return false;
end
$$;

-- The models over their columns as they are now; without an id where that is model_changed.
create function concord_internal.live_models(named concord_internal.models[])
returns concord_internal.models[]
language plpgsql
stable
as $$
begin
  for i in 1 .. cardinality(named) loop
    if (named[i]).id is not null
       and ((named[i]).partitioned or concord_internal.signature((named[i]).rel) <> (named[i]).signature) then
      named[i] := concord_internal.live_model(named[i]);
    end if;
  end loop;
  return named;
end
$$;

-- Where a model is named first, for the path of a refusal.
create function concord_internal.first_use(r concord_internal.request, model text)
returns text
language sql
immutable
as $$
  select u.path from (select o.n, format('operations[%s].model', o.n) as path from unnest(r.operations) o where o.model = first_use.model
                      union all
                      select 10000 + p.n, format('reads[%s].model', p.n) from unnest(r.premises) p where p.model = first_use.model) u
   order by u.n limit 1
$$;

create function concord_internal.held_entries(r concord_internal.request, models concord_internal.models[])
returns jsonb
language sql
immutable
as $$
  select jsonb_agg(jsonb_build_object('model', (models[u.m]).id, 'id', u.key, 'fields', u.fields, 'seq', u.seq))
    from unnest(r.operations) u where u.outcome = 'held'
$$;

create function concord_internal.answer(r concord_internal.request, models concord_internal.models[], commit_id uuid, notifications jsonb,
  seen concord_internal.token, before_seq bigint, after_seq bigint, tenant text)
returns jsonb
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
declare
  applied bigint;
  held bigint;
  unchanged bigint;
  operations jsonb;
  drew boolean;
  keys text[];
  rows jsonb[];                  -- of each model, as they are now
begin
  for i in 1 .. case when r.want_rows then cardinality(models) else 0 end loop
    keys := array(select u.key from unnest(r.operations) u where u.m = i and u.outcome = 'applied' and u.type <> 'delete');
    rows[i] := case when keys <> '{}'
      then concord_internal.rows_values(models[i], keys, array(select jsonb_object_keys((models[i]).columns)), tenant) end;
  end loop;
  select count(*) filter (where u.outcome = 'applied'), count(*) filter (where u.outcome = 'held'),
         count(*) filter (where u.outcome = 'unchanged'),
         jsonb_agg(jsonb_build_object('index', u.n, 'outcome', u.outcome)
                   || case when u.key is null then '{}' else jsonb_build_object('id', u.key) end
                   || case when u.transaction_id is null then '{}' else jsonb_build_object('transactionId', u.transaction_id) end
                   || case when r.want_rows and u.outcome = 'applied' and u.type <> 'delete' then jsonb_build_object('data', rows[u.m]->u.key)
                           else '{}' end order by u.n)
    into applied, held, unchanged, operations
    from unnest(r.operations) u;
  drew := applied > 0 and after_seq > before_seq;
  return jsonb_build_object(
    'object', 'commit_receipt', 'id', commit_id, 'status', 'confirmed', 'replayed', false,
    'syncId', case when drew then after_seq end,
    'readAt', concord_internal.extend_token(seen, case when drew then pg_current_xact_id() end, after_seq),
    'applied', applied, 'held', held, 'unchanged', unchanged, 'operations', operations,
    'notifications', coalesce(notifications, '[]'));
end
$$;

create function concord.try_commit(request jsonb)
returns jsonb
language plpgsql
as $$
declare
  answer constant jsonb := concord_internal.run_commit(request, pg_catalog.current_setting('search_path'), pg_catalog.current_schemas(true));
begin
  if answer operator(pg_catalog.?) 'object' then
    return answer;
  end if;
  return pg_catalog.jsonb_build_object('object', 'commit_receipt', 'id', null, 'status', 'rejected', 'replayed', false, 'syncId', null,
    'readAt', null, 'applied', 0, 'held', 0, 'unchanged', 0, 'operations', '[]'::jsonb, 'notifications', '[]'::jsonb, 'error', answer);
end
$$;
comment on function concord.try_commit(jsonb) is
  'As concord.commit, but what is refused before writing is a receipt with status "rejected" and "error", so that the
caller''s transaction goes on. What fails while writing (constraints, policies) is still raised as Postgres raises it.';

create function concord.commit(request jsonb)
returns jsonb
language plpgsql
as $$
declare
  answer constant jsonb := concord_internal.run_commit(request, pg_catalog.current_setting('search_path'), pg_catalog.current_schemas(true));
begin
  if not answer operator(pg_catalog.?) 'object' then
    perform concord_internal.raise_refusal(answer);
  end if;
  return answer;
end
$$;
comment on function concord.commit(jsonb) is
  'Applies a batch of operations in the caller''s transaction, judged against everything its author had read (readAt) and
declared (reads). Returns a receipt; refusals are exceptions with DETAIL as JSON. See docs/reference.md for both shapes.
READ COMMITTED only. Waits at most lock_timeout. Errors: every code of docs/errors.md, and contended (40P01, 40001, 55P03).';

create function concord.read(model text, id text)
returns jsonb
language plpgsql
stable
as $$
begin
  return concord_internal.read_row(model, id, pg_catalog.current_setting('search_path'));
end
$$;
comment on function concord.read(text, text) is
  'One row and the token it was read under, from one snapshot: {"data": row or null, "readAt": token}. The row has the columns
that the caller may select; null when there is no such row, or none for the caller. Values as in notifications: JSON of
built-in types, the output text of others, the oid of what names an object (regclass and the like). Errors: model_unknown, invalid_request (an id of the wrong shape), contended (40001: the table was altered meanwhile).';

create function concord_internal.read_row(model text, id text, path text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  m concord_internal.models;
  answer jsonb;
  was_path constant text := coalesce(current_setting('concord.path', true), '');
begin
  if model is null or id is null then
    perform concord_internal.fail('invalid_request', case when model is null then 'model' else 'id' end, 'may not be null');
  elsif not concord_internal.session_may(model, 'read') then
    perform concord_internal.fail('forbidden', 'model', format('this session was not minted for %s.read', model));
  end if;
  m := (concord_internal.models_named(array[model]))[1];
  if m.id is null then
    perform concord_internal.fail('model_unknown', 'model', format('no tracked table goes by the name %L', model), jsonb_build_object('model', model));
  end if;
  m := concord_internal.readable_model(m);
  perform set_config('concord.path', path, true);
  select jsonb_build_object('readAt', concord.capture(), 'data',
           concord_internal.row_values(m, concord_internal.canonical_id(m, id), array(select jsonb_object_keys(m.columns)), coalesce(who.tenant, '')))
    into answer;
  perform set_config('concord.path', was_path, true);
  return answer;
exception when undefined_column then
  -- The statement waited for an ALTER TABLE, and its snapshot is older than the columns that it found.
  raise serialization_failure using message = format('the columns of %s changed while it was read: try again', model);
end
$$;
-- The model over its live columns, drifted or not: reading compares nothing.
create function concord_internal.readable_model(m concord_internal.models)
returns concord_internal.models
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if concord_internal.signature(m.rel) <> m.signature then
    m.columns := concord_internal.columns_of(m.rel);
    m.key_columns := concord_internal.key_columns_of(m.rel);
  end if;
  return m;
end
$$;

select concord_internal.open_to('concord_internal.run_commit(jsonb,text,name[])', 'concord_app');
select concord_internal.open_to('concord_internal.beyond_session(concord_internal.request)', 'concord_app');
select concord_internal.open_to('concord_internal.session_may_see_group(text)', 'concord_app');
select concord_internal.open_to('concord_internal.run_whole(jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.judge_sight(concord_internal.request,concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.read_row(text,text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.deletes_unlocked(concord_internal.request,concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.deleted_unjudged(concord_internal.request,concord_internal.models[],concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.live_models(concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.first_use(concord_internal.request,text)', 'concord_app');
select concord_internal.open_to('concord_internal.held_entries(concord_internal.request,concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.answer(concord_internal.request,concord_internal.models[],uuid,jsonb,concord_internal.token,bigint,bigint,text)', 'concord_app');
select concord_internal.open_to('concord.try_commit(jsonb)', 'concord_app');
select concord_internal.open_to('concord.commit(jsonb)', 'concord_app');
select concord_internal.open_to('concord.read(text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.readable_model(concord_internal.models)', 'concord_app');
