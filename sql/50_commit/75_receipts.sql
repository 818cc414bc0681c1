-- What is kept of a receipt for its idempotency key, and what of that is told to whom.

-- An entry of a receipt with only those values whose field is among `names` (null: all); for proposed values, among `own`.
create function concord_internal.with_values(entry jsonb, names text[], own text[])
returns jsonb
language sql
immutable
as $$
  select case when names is null and own is null then entry else
    entry || (select coalesce(jsonb_object_agg(e.key, (select coalesce(jsonb_object_agg(v.key, v.value), '{}') from jsonb_each(e.value) v
                                                        where e.fields is null or v.key = any (e.fields))), '{}')
                from (select x.key, x.value, case x.key when 'proposedValues' then own else names end as fields from jsonb_each(entry) x
                       where x.key in ('data', 'currentValues', 'baseValues', 'proposedValues') and jsonb_typeof(x.value) = 'object') e) end
$$;

-- An entry of a receipt that names no other fields than these (null: all); where there are none, nor who changed what.
create function concord_internal.with_names(entry jsonb, names text[])
returns jsonb
language sql
immutable
as $$
  select case when names is null or not entry ? 'changes' then entry
    when names = '{}' then entry || '{"conflictingFields": [], "changes": [], "writtenBy": null}'
    else entry || jsonb_build_object(
      'conflictingFields', (select coalesce(jsonb_agg(f order by i), '[]') from jsonb_array_elements(entry->'conflictingFields') with ordinality x(f, i)
                             where f #>> '{}' = any (names)),
      'changes', (select coalesce(jsonb_agg(case when c ? 'fields' then c || jsonb_build_object('fields', k.kept) else c end order by i), '[]')
                    from jsonb_array_elements(entry->'changes') with ordinality x(c, i),
                 lateral (select coalesce(jsonb_agg(f order by j), '[]') as kept from jsonb_array_elements(c->'fields') with ordinality y(f, j)
                           where f #>> '{}' = any (names)) k)) end
$$;

-- A receipt as it is kept: without values of secret fields; with the role that was told ("role"); and in each operation and
-- each notification of a row the number of its model ("m"), since a name may pass to another table.
-- (As in the log, a column that the model does not know may be a secret one, renamed.)
create function concord_internal.kept_receipt(receipt jsonb, given jsonb, models concord_internal.models[])
returns jsonb
language plpgsql
volatile
as $$
declare
  kept jsonb := receipt || jsonb_build_object('role', concord_internal.caller());
  marks jsonb := '{}';    -- by the name that the request uses: the model's number, and, where it has secret fields, the others
  named concord_internal.models;
  m concord_internal.models;
begin
  foreach named in array models loop
    select * into m from concord_internal.models o where o.id = named.id;
    marks := marks || jsonb_build_object(named.name, jsonb_build_object('m', coalesce(m.id, 0), 'plain', case when m.secret_fields <> '{}' then
                        array(select c from jsonb_object_keys(m.columns) c where c <> all (m.secret_fields::text[])) end));
  end loop;
  kept := jsonb_set(kept, '{operations}',
    (select jsonb_agg(concord_internal.marked(o, marks->(g->>'model')) order by i)
       from rows from (jsonb_array_elements(receipt->'operations'), jsonb_array_elements(given->'operations')) with ordinality x(o, g, i)));
  if receipt->'notifications' <> '[]' then
    kept := jsonb_set(kept, '{notifications}',
      (select jsonb_agg(case when e ? 'group' then e else concord_internal.marked(e, marks->(e->>'model')) end order by i)
         from jsonb_array_elements(receipt->'notifications') with ordinality x(e, i)));
  end if;
  return kept;
end
$$;

create function concord_internal.marked(entry jsonb, mark jsonb)
returns jsonb
language plpgsql
immutable
as $$
declare
  plain text[];
begin
  if mark->'plain' <> 'null' then
    plain := array(select jsonb_array_elements_text(mark->'plain'));
    entry := concord_internal.with_values(entry, plain, plain);
  end if;
  return entry || jsonb_build_object('m', mark->'m');
end
$$;

-- A kept receipt as it may be told now. The caller is the principal that was told it first, but may have fewer rights: another
-- role, or rights since revoked. Values, and names of fields, are of columns that it may select at this moment and that are not
-- secret now; a role without rights on the table learns no more than what became of its operations. Policies can't be asked
-- about rows as they were, so where they bind it, another role than the first gets no values. What was proposed is the caller's own.
create function concord_internal.told_receipt(kept jsonb)
returns jsonb
language plpgsql
volatile
as $$
declare
  first_role constant boolean := kept->>'role' = concord_internal.caller();
  told jsonb := kept - 'role';
  part text;
  model integer;
  s record;              -- concord_internal.sight, which 60_feed makes
  names text[];          -- fields whose values may be told; null: all
  own text[];
begin
  for model in
    select distinct (e->>'m')::integer from jsonb_array_elements((kept->'operations') || (kept->'notifications')) e where e ? 'm'
  loop
    select * into s from concord_internal.sight(model);
    names := case when s.model is null or s.groups_only is not null or (s.own_only or s.owned) and not first_role then '{}' else s.valued end;
    select case when m.secret_fields <> '{}' then
             array(select a.attname from pg_attribute a
                    where a.attrelid = m.rel and a.attnum > 0 and not a.attisdropped and a.attname <> all (m.secret_fields)) end
      into own from concord_internal.models m where m.id = model;
    if not found then
      own := '{}';
    end if;
    foreach part in array array['operations', 'notifications'] loop
      told := told || jsonb_build_object(part,
        (select coalesce(jsonb_agg(case when (e->>'m')::integer = model
                  then concord_internal.with_names(concord_internal.with_values(e, names, own), case when s.model is null then '{}' else s.fields end)
                  else e end order by i), '[]')
           from jsonb_array_elements(told->part) with ordinality x(e, i)));
    end loop;
  end loop;
  return told || jsonb_build_object(
    'operations', (select jsonb_agg(e - 'm' order by i) from jsonb_array_elements(told->'operations') with ordinality x(e, i)),
    'notifications', (select coalesce(jsonb_agg(case when e ? 'group' and not first_role then concord_internal.with_names(e, '{}') else e - 'm' end order by i), '[]')
                        from jsonb_array_elements(told->'notifications') with ordinality x(e, i)));
end
$$;

select concord_internal.open_to('concord_internal.kept_receipt(jsonb,jsonb,concord_internal.models[])');
select concord_internal.open_to('concord_internal.marked(jsonb,jsonb)');
select concord_internal.open_to('concord_internal.with_values(jsonb,text[],text[])');
select concord_internal.open_to('concord_internal.with_names(jsonb,text[])');
select concord_internal.open_to('concord_internal.told_receipt(jsonb)');
