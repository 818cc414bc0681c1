-- Takes the values of one row out of the log; that it changed, when and by whom stays. Also out of the receipts that are
-- kept for idempotency keys: what a notification told of the row, and what a commit returned of it.
create function concord_internal.forget_row(model integer, row_key text)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m concord_internal.models;
begin
  select * into m from concord_internal.models o where o.id = forget_row.model;
  perform concord_internal.demand_owner(m.rel);
  update concord_internal.deltas d set before = null
   where hashtextextended(d.key, d.model::bigint) = hashtextextended(row_key, m.id::bigint)
     and d.key is not null and d.key = row_key and d.model = m.id and d.before is not null;
  update concord_internal.commits c
     set receipt = c.receipt || jsonb_build_object(
           'notifications', (select coalesce(jsonb_agg(case when n->>'id' = row_key and n->>'model' = m.name
                 then n || case when n->'currentValues' = 'null' then '{}' else '{"currentValues": {}}'::jsonb end
                        || '{"baseValues": {}, "proposedValues": {}}' else n end order by i), '[]')
              from jsonb_array_elements(c.receipt->'notifications') with ordinality x(n, i)),
           'operations', (select coalesce(jsonb_agg(case when o->>'id' = row_key then o - 'data' else o end order by i), '[]')
              from jsonb_array_elements(c.receipt->'operations') with ordinality x(o, i)))
   where c.receipt is not null
     and (c.receipt @> jsonb_build_object('notifications', jsonb_build_array(jsonb_build_object('model', m.name, 'id', row_key)))
          or (c.receipt @> jsonb_build_object('operations', jsonb_build_array(jsonb_build_object('id', row_key)))
              and exists (select from concord_internal.deltas d
                           where hashtextextended(d.key, d.model::bigint) = hashtextextended(row_key, m.id::bigint)
                             and d.key is not null and d.key = row_key and d.model = m.id and d.xid = c.xid and d.epoch = c.epoch)));
end
$$;

-- The caller's model of this name; refuses in place of whoever does not own it.
create function concord_internal.demand_owned_model(model text)
returns concord_internal.models
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  m constant concord_internal.models := concord_internal.owned_model(model);
begin
  if m.id is not null then
    return m;
  elsif exists (select from concord_internal.models o where o.name = model and o.tenant in ('', (concord.principal()).tenant)) then
    perform concord_internal.fail('forbidden', 'model', 'only the owner of the table may do this');
  end if;
  perform concord_internal.fail('model_unknown', 'model', format('no tracked table goes by the name %L', model), jsonb_build_object('model', model));
end
$$;

create function concord.forget(model text, id text)
returns void
language plpgsql
as $$
declare
  m concord_internal.models;
begin
  if model is null or id is null then
    perform concord_internal.fail('invalid_request', case when model is null then 'model' else 'id' end, 'may not be null');
  end if;
  m := concord_internal.demand_owned_model(model);
  perform concord_internal.forget_row(m.id, concord_internal.canonical_id(concord_internal.readable_model(m), id));
end
$$;
comment on function concord.forget(text, text) is
  'Blanks what the log and kept receipts hold of a row''s values; that it changed, when and by whom stays. baseValues and
before of what happened so far are absent from then on. The row itself is not touched. Nothing to forget is no error.
Owner of the table only. Errors: model_unknown, forbidden, invalid_request (param: model, id).';

select concord_internal.open_to('concord_internal.forget_row(integer,text)', 'public');
select concord_internal.open_to('concord_internal.demand_owned_model(text)', 'public');
select concord_internal.open_to('concord.forget(text,text)', 'public');
-- Opened to concord_app where they are made (50_commit), and here to everybody: an owner who forgets a row of its own need be
-- no member of concord_app to have its ids read.
select concord_internal.open_to('concord_internal.readable_model(concord_internal.models)', 'public');
select concord_internal.open_to('concord_internal.record_of(concord_internal.models,text[])', 'public');
select concord_internal.open_to('concord_internal.canonical_key(concord_internal.models,jsonb)', 'public');
select concord_internal.open_to('concord_internal.canonical_id(concord_internal.models,text)', 'public');
