-- Judging a whole request, as the caller: precedence is existence, "where", staleness, each in request order.

create function concord_internal.notification(place jsonb, model text, id text, token text, observed text, conflict jsonb,
                                              current_values jsonb, proposed jsonb)
returns jsonb
language sql
immutable
as $$
  select jsonb_build_object('object', 'stale_notification') || place || jsonb_build_object(
    'model', model, 'id', id, 'readAt', token, 'observedAt', observed,
    'conflictingFields', conflict->'fields', 'currentValues', current_values,
    'baseValues', (coalesce(current_values, '{}') - array(select jsonb_array_elements_text(conflict->'lost'))) || (conflict->'base'),
    'proposedValues', proposed, 'writtenBy', conflict->'by', 'deleted', current_values is null and not place ? 'group',
    'changes', conflict->'changes', 'changesTruncated', conflict->'truncated')
$$;

-- Tokens and the models they are used on. Returns a refusal or null; fills in the parsed tokens, text by text.
create function concord_internal.judge_tokens(r concord_internal.request, given jsonb, models concord_internal.models[],
  out refusal jsonb, out texts text[], out tokens concord_internal.token[])
language plpgsql
as $$
declare
  o concord_internal.operation;
  p concord_internal.premise;
  last_text text;
  last_m integer;
begin
  texts := '{}';
  tokens := '{}';
  foreach o in array r.operations loop
    continue when o.token is null or (o.token = last_text and o.m = last_m);
    if o.type <> 'create' then  -- a create's token is parsed; nothing of the model is judged under it
      last_text := o.token;
      last_m := o.m;
    end if;
    select j.refusal, j.texts, j.tokens into refusal, texts, tokens from concord_internal.judge_token(texts, tokens, o.token, case when o.type <> 'create' then models[o.m] end, null,
      case when given->'operations'->o.n ? 'readAt' then 'operations[' || o.n || '].readAt' else 'readAt' end, 'operations[' || o.n || ']') j;
    if refusal is not null then
      return;
    end if;
  end loop;
  foreach p in array r.premises loop
    select j.refusal, j.texts, j.tokens into refusal, texts, tokens from concord_internal.judge_token(texts, tokens, p.token, models[p.m], p.grp,
      case when given->'reads'->p.n ? 'readAt' then 'reads[' || p.n || '].readAt' else 'readAt' end, 'reads[' || p.n || ']') j;
    if refusal is not null then
      return;
    end if;
  end loop;
end
$$;

create function concord_internal.judge_token(inout texts text[], inout tokens concord_internal.token[], token text,
  m concord_internal.models, grp text, token_path text, path text, out refusal jsonb)
language plpgsql
as $$
declare
  t concord_internal.token;
begin
  if token = any (texts) then
    t := tokens[array_position(texts, token)];
  else
    t := concord_internal.parse_token(token);
    if t.problem is not null then
      refusal := concord_internal.refusal(t.problem, token_path);
      return;
    end if;
    texts := texts || token;
    tokens := tokens || t;
  end if;
  if grp is not null then
    if not concord_internal.knows_group(grp, t) then
      refusal := concord_internal.refusal('model_changed', path || '.group');
    end if;
  elsif m.id is not null and (m.paused or not concord_internal.has_seen(t, m.horizon_epoch, m.horizon_xid, 0)) then
    refusal := concord_internal.refusal('model_changed', path, null, jsonb_build_object('model', m.name));
  end if;
end
$$;

-- Existence, in operation order: what an earlier operation of the batch does to a row counts. A target that is not there is
-- left to the staleness check when it is guarded: it may have been deleted since the token. Returns position and code.
create function concord_internal.first_missing(r concord_internal.request, models concord_internal.models[], present text[], tenant text,
                                               out n integer, out code text, out absent integer[])
language plpgsql
as $$
declare
  o record;
  there boolean;
begin
  absent := '{}';
  if cardinality(present) = cardinality(r.operations) then
    return;  -- each target was locked, and they are distinct: `present` holds a row once
  end if;
  for o in
    select u.n, u.type, u.m, u.key, u.token, u.mode, max(case u.type when 'create' then 2 * u.n + 1 when 'delete' then 2 * u.n end)
             over (partition by u.m, u.key order by u.n rows between unbounded preceding and 1 preceding) as earlier,  -- odd: created
           (u.m || ' ' || u.key) = any (present) as locked
      from unnest(r.operations) u where u.key is not null and u.ref is null order by u.n
  loop
    there := case when o.earlier is not null then o.earlier % 2 = 1
                  when o.type = 'create' then concord_internal.row_values(models[o.m], o.key, '{}', tenant) is not null
                  else o.locked end;
    if o.type = 'create' and there then
      n := o.n; code := 'already_exists'; return;
    elsif o.type <> 'create' and not there then
      if o.earlier is not null or o.token is null or o.mode = 'overwrite' then
        n := o.n; code := 'not_found'; return;
      end if;
      absent := absent || o.n;
    end if;
  end loop;
end
$$;

-- The commonest request, whose rows nobody has touched, is through with this one look: positions ('o 3', 'r 0') whose
-- newest delta is unseen, or whose model has an unseen whole-model delta.
create function concord_internal.moved_places(r concord_internal.request, models concord_internal.models[],
  texts text[], tokens concord_internal.token[])
returns text[]
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
declare
  places text[];
  ids integer[];
  keys text[];
  moved text[] := '{}';
  rows integer[];
  whole integer[];
begin
  for i in 1 .. cardinality(texts) loop
    select array_agg(c.place), array_agg(c.model), array_agg(c.key) into places, ids, keys
      from (select 'o ' || u.n as place, (models[u.m]).id as model, u.key from unnest(r.operations) u
             where u.token = texts[i] and u.type <> 'create' and (u.mode is distinct from 'overwrite' or u.only_changed) and u.key is not null and u.ref is null
            union all
            select 'r ' || u.n, (models[u.m]).id, u.key from unnest(r.premises) u where u.token = texts[i] and u.key is not null) c;
    continue when places is null;
    rows := concord_internal.moved_rows(ids, keys, tokens[i]);
    whole := concord_internal.moved_models(ids, tokens[i]);
    continue when rows is null and whole is null;
    moved := moved || array(select u.place from unnest(places, ids) with ordinality u(place, id, x) where u.x = any (rows) or u.id = any (whole));
  end loop;
  return moved;
end
$$;

create function concord_internal.judge_request(inout r concord_internal.request, models concord_internal.models[], present text[],
  texts text[], tokens concord_internal.token[], kind text, tenant text, inout notifications jsonb default '[]')
language plpgsql
as $$
declare
  o concord_internal.operation;
  p concord_internal.premise;
  m concord_internal.models;
  t concord_internal.token;
  operations concord_internal.operation[] := r.operations;
  missing record;
  moved constant text[] := concord_internal.moved_places(r, models, texts, tokens);
  all_there constant boolean := cardinality(present) = cardinality(r.operations);  -- each locked, and they are distinct
  observed text;
  conflict jsonb;
  current_values jsonb;
  proposed jsonb;
  base jsonb;
  wanted text[];
  again integer[];
  rejected boolean := false;
  hold_all boolean := false;
  first_param text;
begin
  if all_there and moved = '{}' and r.premises = '{}' and not coalesce(r.only_changed, false)
     and not exists (select from unnest(operations) u where u.condition is not null) then
    return;
  end if;
  select * into missing from concord_internal.first_missing(r, models, present, tenant);
  if missing.code is not null then
    r.refusal := concord_internal.refusal(missing.code, format('operations[%s].id', missing.n));
    return;
  end if;
  foreach o in array operations loop
    if o.condition is not null and o.n <> all (missing.absent)
       and not concord_internal.row_matches(models[o.m], o.key, o.condition, tenant) then
      r.refusal := concord_internal.refusal('precondition_failed', format('operations[%s].where', o.n));
      return;
    end if;
  end loop;

  -- Premises: a stale one applies its mode to the whole batch.
  foreach p in array r.premises loop
    p.mode := coalesce(p.mode, (models[p.m]).on_stale->>kind, 'reject');
    t := tokens[array_position(texts, p.token)];
    conflict := null;
    if p.grp is not null then
      if not concord_internal.knows_group(p.grp, t) then  -- a model of the kind may have come or gone while we waited
        r.refusal := concord_internal.refusal('model_changed', format('reads[%s].group', p.n));
        return;
      end if;
      select concord_internal.group_conflict(p.grp, t), concord.capture() into conflict, observed;
      if conflict is not null then
        conflict := concord_internal.notification(jsonb_build_object('read', p.n, 'group', p.grp), p.grp, p.grp, p.token, observed, conflict, null, null)
                    - array['currentValues', 'baseValues', 'proposedValues'] || '{"currentValues": {}, "baseValues": {}, "proposedValues": {}}';
      end if;
    else
      m := models[p.m];
      wanted := coalesce(p.fields, array(select jsonb_object_keys(m.columns)));
      -- One statement, one snapshot: whether the row is there, what moved, its values, and the token of that moment.
      if 'r ' || p.n = any (moved) then
        select concord_internal.row_values(m, p.key, wanted, tenant), concord_internal.row_conflict(m.id, p.key, p.fields, wanted, t), concord.capture()
          into current_values, conflict, observed;
      else
        -- It may have come or gone since `moved` was worked out: asked once more, in one moment with its presence.
        select concord_internal.row_values(m, p.key, '{}', tenant), concord_internal.moved_rows(array[m.id], array[p.key], t)
          into current_values, again;
        if again is not null or p.absent <> (current_values is null) then
          select concord_internal.row_values(m, p.key, wanted, tenant), concord_internal.row_conflict(m.id, p.key, p.fields, wanted, t), concord.capture()
            into current_values, conflict, observed;
        end if;
      end if;
      if conflict is null and p.absent and current_values is not null then
        conflict := '{"fields": [], "deleted": false, "changes": [], "truncated": false, "base": {}, "lost": [], "by": null}';
      elsif conflict is null and not p.absent and current_values is null then
        r.refusal := concord_internal.refusal('not_found', format('reads[%s].id', p.n));
        return;
      end if;
      if conflict is not null then
        conflict := concord_internal.notification(jsonb_build_object('read', p.n), p.model, p.key, p.token, observed, conflict, current_values, '{}');
      end if;
    end if;
    if conflict is not null and p.mode <> 'overwrite' then
      notifications := notifications || conflict;
      rejected := rejected or p.mode = 'reject';
      hold_all := true;
      first_param := coalesce(first_param, format('reads[%s]', p.n));
    end if;
  end loop;

  foreach o in array operations loop
    if o.type = 'create' or o.ref is not null or (o.token is null and not o.only_changed) then
      continue when not hold_all;
    end if;
    if o.token is not null then
      o.mode := coalesce(o.mode, (models[o.m]).on_stale->>kind, 'reject');
      t := tokens[array_position(texts, o.token)];
    end if;
    m := models[o.m];
    conflict := null;
    current_values := null;
    wanted := coalesce(o.fields, array(select jsonb_object_keys(m.columns)));
    if 'o ' || o.n = any (moved) and (o.mode <> 'overwrite' or o.only_changed) then
      -- One statement, one snapshot; a target that is not there is not locked, and may come at any moment.
      select concord_internal.row_values(m, o.key, wanted, tenant), concord_internal.row_conflict(m.id, o.key, o.fields, wanted, t), concord.capture()
        into current_values, conflict, observed;
    elsif o.only_changed then
      current_values := concord_internal.row_values(m, o.key, wanted, tenant);
    end if;
    if o.only_changed and current_values is not null and not o.refs then
      -- Equal to the value at the token: not a write. What the log does not hold counts as written.
      proposed := concord_internal.typed_values(m, o.data);
      base := (current_values - array(select jsonb_array_elements_text(conflict->'lost'))) || coalesce(conflict->'base', '{}');
      o.fields := array(select f from unnest(o.fields) f where not base ? f or (base->f)::text <> (proposed->f)::text);
      o.data := (select coalesce(jsonb_object_agg(f, o.data->f), '{}') from unnest(o.fields) f);
      if o.fields = '{}' then
        o.outcome := 'unchanged';
        conflict := null;
      elsif conflict is not null then
        conflict := concord_internal.row_conflict(m.id, o.key, o.fields, o.fields, t);
      end if;
    end if;
    if conflict is not null and o.type = 'update' and current_values is not null and not o.refs then
      -- Writing what is there already is no conflict.
      proposed := concord_internal.typed_values(m, o.data);
      conflict := conflict || jsonb_build_object('fields',
        (select coalesce(jsonb_agg(f), '[]') from jsonb_array_elements_text(conflict->'fields') f
          where not current_values ? f or (current_values->f)::text <> (proposed->f)::text));
      if not (conflict->>'whole')::boolean and not (conflict->>'hidden')::boolean and conflict->'fields' = '[]'
         or not exists (select from unnest(o.fields) f where not current_values ? f or (current_values->f)::text <> (proposed->f)::text) then
        conflict := null;
      elsif conflict->'fields' <> '[]' then  -- of the changes, those that still conflict
        conflict := conflict || coalesce(concord_internal.row_conflict(m.id, o.key,
          array(select jsonb_array_elements_text(conflict->'fields')), '{}', t) - array['fields', 'hidden', 'base', 'lost'], '{}');
      end if;
    end if;
    if o.mode = 'overwrite' then
      conflict := null;
    end if;
    if conflict is null and o.n = any (missing.absent) then
      r.refusal := concord_internal.refusal('not_found', format('operations[%s].id', o.n));
      return;
    end if;
    if conflict is not null then
      o.conflict := concord_internal.notification(jsonb_build_object('index', o.n), o.model, o.key, o.token, observed, conflict,
        case when o.fields is not null and current_values is not null
             then (select coalesce(jsonb_object_agg(k, v), '{}') from jsonb_each(current_values) e(k, v) where k = any (o.fields))
             else current_values end,
        coalesce(o.data, '{}'));
      if o.fields is not null then
        o.conflict := o.conflict || jsonb_build_object('baseValues',
          (select coalesce(jsonb_object_agg(k, v), '{}') from jsonb_each(o.conflict->'baseValues') e(k, v) where k = any (o.fields)));
      end if;
      notifications := notifications || o.conflict;
      o.conflict := o.conflict || jsonb_build_object('seq', conflict->'seq');
      o.outcome := 'held';
      rejected := rejected or o.mode = 'reject';
      first_param := coalesce(first_param, format('operations[%s]', o.n));
    end if;
    if hold_all then
      o.outcome := 'held';
    end if;
    operations[o.n + 1] := o;
  end loop;
  r.operations := operations;
  if rejected then
    r.refusal := concord_internal.refusal('stale_context', first_param, null, jsonb_build_object('notifications', notifications));
  end if;
end
$$;

-- The token of a notification: what this statement sees, after the locks. VOLATILE for the fresh snapshot.
create function concord_internal.observed_now()
returns text
language plpgsql
volatile
as $$
begin
  return concord.capture();
end
$$;

select concord_internal.open_to('concord_internal.notification(jsonb,text,text,text,text,jsonb,jsonb,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.judge_tokens(concord_internal.request,jsonb,concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.judge_token(text[],concord_internal.token[],text,concord_internal.models,text,text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.moved_places(concord_internal.request,concord_internal.models[],text[],concord_internal.token[])', 'concord_app');
select concord_internal.open_to('concord_internal.first_missing(concord_internal.request,concord_internal.models[],text[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.judge_request(concord_internal.request,concord_internal.models[],text[],text[],concord_internal.token[],text,text,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.observed_now()', 'concord_app');
