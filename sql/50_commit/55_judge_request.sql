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

-- The commonest request, whose rows nobody has touched, is through with this one look: for each operation and each premise
-- whether the newest delta of its row is unseen, or its model has an unseen whole-model delta.
create function concord_internal.moved_places(r concord_internal.request, models concord_internal.models[],
  texts text[], tokens concord_internal.token[], out any_moved boolean, out operations boolean[], out premises boolean[])
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
declare
  places integer[];      -- of operations n, of premises -1 - n
  ids integer[];
  keys text[];
  rows integer[];
  whole integer[];
  place integer;
begin
  any_moved := false;
  operations := array_fill(false, array[cardinality(r.operations)]);
  premises := array_fill(false, array[cardinality(r.premises)]);
  for i in 1 .. cardinality(texts) loop
    select array_agg(c.place), array_agg(c.model), array_agg(c.key) into places, ids, keys
      from (select u.n as place, (models[u.m]).id as model, u.key from unnest(r.operations) u
             where u.token = texts[i] and u.type <> 'create' and (u.mode is distinct from 'overwrite' or u.only_changed) and u.key is not null
            union all
            select -1 - u.n, (models[u.m]).id, u.key from unnest(r.premises) u where u.token = texts[i] and u.key is not null) c;
    continue when places is null;
    rows := concord_internal.moved_rows(ids, keys, tokens[i]);
    whole := concord_internal.moved_models(ids, tokens[i]);
    continue when rows is null and whole is null;
    for place in
      select places[x] from unnest(rows) x
      union
      select u.place from unnest(places, ids) u(place, id) where u.id = any (whole)
    loop
      any_moved := true;
      if place >= 0 then
        operations[place + 1] := true;
      else
        premises[-place] := true;
      end if;
    end loop;
  end loop;
end
$$;

-- Existence, in operation order: what an earlier operation of the batch does to a row counts. A guarded target that is not
-- there, and of which the token has not seen everything, was deleted since: that is left to the staleness check. Where
-- row-level security is in force it may as well be hidden, and both are not_found. Returns position and code.
create function concord_internal.first_missing(r concord_internal.request, models concord_internal.models[], present text[],
  moved boolean[], texts text[], tokens concord_internal.token[], tenant text, out n integer, out code text, out absent boolean[])
language plpgsql
set plan_cache_mode = force_generic_plan
as $$
declare
  o record;
  there boolean;
begin
  absent := array_fill(false, array[cardinality(r.operations)]);
  if cardinality(present) = cardinality(r.operations) then
    return;  -- each target was locked, and they are distinct: `present` holds a row once
  end if;
  for o in
    select u.n, u.type, u.m, u.key, u.token, u.mode, max(case u.type when 'create' then 2 * u.n + 1 when 'delete' then 2 * u.n end)
             over (partition by u.m, u.key order by u.n rows between unbounded preceding and 1 preceding) as earlier,  -- odd: created
           p.there is not null as locked
      from unnest(r.operations) u left join unnest(present) p(there) on p.there = u.m || ' ' || u.key
     where u.key is not null order by u.n
  loop
    there := case when o.earlier is not null then o.earlier % 2 = 1
                  when o.type = 'create' then concord_internal.row_values(models[o.m], o.key, '{}', tenant) is not null
                  else o.locked end;
    continue when there = (o.type <> 'create');
    if o.type = 'create' then
      n := o.n; code := 'already_exists'; return;
    elsif o.earlier is not null or o.token is null or o.mode = 'overwrite' or not moved[o.n + 1]
          or row_security_active((models[o.m]).rel)
          or concord_internal.row_conflict((models[o.m]).id, o.key, null, '{}', tokens[array_position(texts, o.token)]) is null then
      n := o.n; code := 'not_found'; return;
    end if;
    absent[o.n + 1] := true;
  end loop;
end
$$;

-- A row's values, what moved in it, and the token of that moment: STABLE, so that all three speak of one. From plain
-- assignments, as row_conflict asks for.
create function concord_internal.look(m concord_internal.models, key text, fields text[], wanted text[], tenant text, t concord_internal.token,
  out current_values jsonb, out conflict jsonb, out observed text)
language plpgsql
stable
as $$
begin
  current_values := concord_internal.row_values(m, key, wanted, tenant);
  conflict := concord_internal.row_conflict(m.id, key, fields, wanted, t);
  observed := concord.capture();
end
$$;

create function concord_internal.judge_request(inout r concord_internal.request, models concord_internal.models[], present text[],
  unlocked text[], texts text[], tokens concord_internal.token[], kind text, tenant text, out notifications jsonb, out unlocked_came boolean)
language plpgsql
as $$
declare
  looked record;
  o concord_internal.operation;
  p concord_internal.premise;
  m concord_internal.models;
  t concord_internal.token;
  operations concord_internal.operation[] := r.operations;
  missing record;
  moved record;
  observed text;
  conflict jsonb;
  current_values jsonb;
  proposed jsonb;
  base jsonb;
  wanted text[];
  unequal text[];
  match text;       -- the statement for "where"
  match_of text;    -- of this model and these columns
  again integer[];
  told jsonb[] := '{}';
  rejected boolean := false;
  hold_all boolean := false;
  first_param text;
  which integer;            -- of the models
  places integer[];         -- operations of one model that have the same fields
  keys text[];
  given jsonb;
  held_rows jsonb;
  typed jsonb[];
  found_rows jsonb[];       -- by operation
  typed_data jsonb[];
begin
  notifications := '[]';
  unlocked_came := false;
  select * into moved from concord_internal.moved_places(r, models, texts, tokens);
  -- `present` holds each row once: as many as there are operations, and each was locked
  if cardinality(present) = cardinality(operations) and unlocked = '{}' and not moved.any_moved and r.premises = '{}' and not r.only_changed
     and not exists (select from unnest(operations) u where u.condition is not null) then
    return;
  end if;
  select * into missing from concord_internal.first_missing(r, models, present, moved.operations, texts, tokens, tenant);
  if missing.code is not null then
    r.refusal := concord_internal.refusal(missing.code, format('operations[%s].id', missing.n));
    return;
  end if;
  if unlocked <> '{}' then
    missing.n := (select min(u.n) from unnest(operations) u where u.type = 'update' and u.m || ' ' || u.key = any (unlocked));
    if missing.n is not null then
      r.refusal := concord_internal.refusal('forbidden', format('operations[%s].id', missing.n), 'a policy of the table lets this row be read and not updated');
      return;
    end if;
  end if;

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
      if moved.premises[p.n + 1] then
        looked := concord_internal.look(m, p.key, p.fields, wanted, tenant, t);
        current_values := looked.current_values;
        conflict := looked.conflict;
        observed := looked.observed;
      else
        -- It may have come or gone since `moved` was worked out: asked once more, in one moment with its presence.
        select concord_internal.row_values(m, p.key, '{}', tenant), concord_internal.moved_rows(array[m.id], array[p.key], t)
          into current_values, again;
        if again is not null or p.absent <> (current_values is null) then
          looked := concord_internal.look(m, p.key, p.fields, wanted, tenant, t);
          current_values := looked.current_values;
          conflict := looked.conflict;
          observed := looked.observed;
        end if;
      end if;
      if current_values is null and row_security_active(m.rel) then
        -- Gone, or hidden: nothing of it is told. That no such row may come is still held to.
        conflict := case when p.absent and conflict is not null then concord_internal.bare_conflict() end;
      end if;
      if conflict is null and p.absent and current_values is not null then
        conflict := concord_internal.bare_conflict();
      elsif conflict is null and not p.absent and current_values is null then
        r.refusal := concord_internal.refusal('not_found', format('reads[%s].id', p.n));
        return;
      end if;
      if conflict is not null then
        conflict := concord_internal.notification(jsonb_build_object('read', p.n), p.model, p.key, p.token, observed, conflict, current_values, '{}');
      end if;
    end if;
    if conflict is not null and p.mode <> 'overwrite' then
      told := told || conflict;
      rejected := rejected or p.mode = 'reject';
      hold_all := true;
      first_param := coalesce(first_param, format('reads[%s]', p.n));
    end if;
  end loop;

  foreach o in array operations loop
    continue when o.condition is null or o.condition = '{}' or missing.absent[o.n + 1];
    wanted := array(select k from jsonb_object_keys(o.condition) k order by k);
    if match_of is distinct from (o.m || wanted::text) then
      match := concord_internal.match_statement(models[o.m], wanted, tenant);
      match_of := o.m || wanted::text;
    end if;
    if not concord_internal.row_matches(match, o.key, o.condition) then
      r.refusal := concord_internal.refusal('precondition_failed', format('operations[%s].where', o.n));
      return;
    end if;
  end loop;

  -- What onlyChanged compares, read at once where nothing moved: those rows are locked, or not there.
  for which, wanted, places, keys, given in
    select u.m, u.fields, array_agg(u.n), array_agg(u.key), jsonb_agg(u.data)
      from unnest(operations) u
     where u.only_changed and u.type = 'update' and u.key is not null and u.fields <> '{}' and not u.refs and not moved.operations[u.n + 1]
     group by u.m, u.fields
  loop
    held_rows := concord_internal.rows_values(models[which], keys, wanted, tenant);
    typed := concord_internal.typed_rows(models[which], wanted, given);
    for x in 1 .. cardinality(places) loop
      found_rows[places[x] + 1] := held_rows->keys[x];
      typed_data[places[x] + 1] := typed[x];
    end loop;
  end loop;

  foreach o in array operations loop
    if o.archives is not null and not hold_all then
      -- The row is locked, or not there. One that is put away already, whenever that was, has nothing more to be done to it.
      current_values := concord_internal.row_values(models[o.m], o.key, o.fields, tenant);
      if (current_values->(o.fields[1]) <> 'null') = o.archives then
        o.outcome := 'unchanged';
        operations[o.n + 1] := o;
        continue;
      end if;
    end if;
    if o.type = 'create' or o.key is null or (o.token is null and not o.only_changed) then
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
    if moved.operations[o.n + 1] and (o.mode <> 'overwrite' or o.only_changed) then
      -- One statement, one snapshot; a target that is not there is not locked, and may come at any moment.
      looked := concord_internal.look(m, o.key, o.fields, wanted, tenant, t);
      current_values := looked.current_values;
      conflict := looked.conflict;
      observed := looked.observed;
    elsif o.only_changed then
      current_values := case when typed_data[o.n + 1] is null then concord_internal.row_values(m, o.key, wanted, tenant) else found_rows[o.n + 1] end;
    end if;
    if o.only_changed and current_values is not null and not o.refs then
      -- Equal to the value at the token: not a write. What the log does not hold counts as written.
      proposed := coalesce(typed_data[o.n + 1], concord_internal.typed_values(m, o.data));
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
      unequal := concord_internal.unequal_fields(m, o.key, o.data, o.fields, tenant);
      wanted := array(select f from jsonb_array_elements_text(conflict->'fields') f where f = any (unequal));
      if unequal = '{}' or not (conflict->>'whole')::boolean and not (conflict->>'hidden')::boolean and wanted = '{}' then
        conflict := null;
      elsif cardinality(wanted) < jsonb_array_length(conflict->'fields') then  -- of the changes, those that still conflict
        conflict := conflict || coalesce(concord_internal.row_conflict(m.id, o.key, wanted, '{}', t) - array['hidden', 'base', 'lost'], '{}')
                    || jsonb_build_object('fields', wanted);
      end if;
    end if;
    if o.mode = 'overwrite' then
      conflict := null;
    end if;
    if missing.absent[o.n + 1] and current_values is not null then
      unlocked_came := true;  -- it was not there to be locked, and is now: lock, and judge anew
      return;
    elsif conflict is null and missing.absent[o.n + 1] then
      r.refusal := concord_internal.refusal('not_found', format('operations[%s].id', o.n));
      return;
    end if;
    if conflict is not null then
      told := told || concord_internal.operation_notification(o, observed, conflict, current_values);
      o.seq := conflict->>'seq';
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
  notifications := to_jsonb(told);
  if rejected then
    r.refusal := concord_internal.refusal('stale_context', first_param, null, jsonb_build_object('notifications', notifications));
  end if;
end
$$;

-- A conflict of which nothing may be told.
create function concord_internal.bare_conflict()
returns jsonb
language sql
immutable
return '{"fields": [], "whole": true, "changes": [], "truncated": false, "base": {}, "lost": [], "by": null}'::jsonb;

-- A notification's three values cover the fields that the operation writes.
create function concord_internal.operation_notification(o concord_internal.operation, observed text, conflict jsonb, current_values jsonb)
returns jsonb
language plpgsql
immutable
as $$
declare
  told jsonb := concord_internal.notification(jsonb_build_object('index', o.n), o.model, o.key, o.token, observed, conflict,
                                              current_values, coalesce(o.data, '{}'));
  part text;
begin
  if o.fields is not null then
    foreach part in array array['currentValues', 'baseValues'] loop
      if told->part <> 'null' then
        told := jsonb_set(told, array[part],
          (select coalesce(jsonb_object_agg(k, v), '{}') from jsonb_each(told->part) e(k, v) where k = any (o.fields)));
      end if;
    end loop;
  end if;
  return told;
end
$$;

-- What an unguarded commit's receipt has seen: this moment, after the locks. VOLATILE for the fresh snapshot.
create function concord_internal.observed_now()
returns text
language plpgsql
volatile
as $$
begin
  return concord.capture();
end
$$;

select concord_internal.open_to('concord_internal.look(concord_internal.models,text,text[],text[],text,concord_internal.token)', 'concord_app');
select concord_internal.open_to('concord_internal.notification(jsonb,text,text,text,text,jsonb,jsonb,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.judge_tokens(concord_internal.request,jsonb,concord_internal.models[])', 'concord_app');
select concord_internal.open_to('concord_internal.judge_token(text[],concord_internal.token[],text,concord_internal.models,text,text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.moved_places(concord_internal.request,concord_internal.models[],text[],concord_internal.token[])', 'concord_app');
select concord_internal.open_to('concord_internal.first_missing(concord_internal.request,concord_internal.models[],text[],boolean[],text[],concord_internal.token[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.bare_conflict()', 'concord_app');
select concord_internal.open_to('concord_internal.operation_notification(concord_internal.operation,text,jsonb,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.judge_request(concord_internal.request,concord_internal.models[],text[],text[],text[],concord_internal.token[],text,text)', 'concord_app');
select concord_internal.open_to('concord_internal.observed_now()', 'concord_app');
