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
           'operations', (select jsonb_agg(case when e->>'id' = row_key and (e->>'m')::integer = m.id then e - 'data' else e end order by i)
              from jsonb_array_elements(c.receipt->'operations') with ordinality x(e, i)),
           'notifications', (select coalesce(jsonb_agg(case when e->>'id' = row_key and (e->>'m')::integer = m.id
                 then concord_internal.with_values(e, '{}', '{}') else e end order by i), '[]')
              from jsonb_array_elements(c.receipt->'notifications') with ordinality x(e, i)))
   where c.about @> array[hashtextextended(row_key, m.id::bigint)];
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
  perform pg_catalog.set_config('concord.path', '', true);  -- under this search_path, and no other
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
