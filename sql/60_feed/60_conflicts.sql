-- What notify held, for the tenant that the caller acts in, under the same rights as the log. A row of the model's table
-- need not be there: a held create never was.
create function concord_internal.conflicts_shown(
  out commit_id uuid, out at timestamptz, out tenant text, out model text, out id text, out fields text[],
  out kind text, out actor text, out by_kind text, out by_actor text)
returns setof record
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  all_tenants constant boolean := concord_internal.owns_a_model();
  s concord_internal.sight;
  h concord_internal.held;
  last_model integer;
begin
  for h in
    select x.* from concord_internal.held x where all_tenants or x.tenant = who.tenant order by x.model, x.at desc
  loop
    if h.model is distinct from last_model then
      s := concord_internal.sight(h.model);
      last_model := h.model;
    end if;
    continue when s.model is null or not (s.all_tenants or h.tenant = who.tenant)
               or ((s.own_only or s.owned or s.groups_only is not null) and (h.tenant <> who.tenant or h.kind <> who.kind or h.actor <> who.id) is not false);
    fields := h.fields;
    if s.fields is not null then
      fields := array(select f from unnest(h.fields) f where f = any (s.fields));
      continue when fields = '{}' and h.fields <> '{}';
      if h.fields is null then
        fields := null;
      end if;
    end if;
    commit_id := h.commit_id;
    at := h.at;
    tenant := h.tenant;
    model := s.name;
    id := h.key;
    kind := h.kind;
    actor := h.actor;
    by_kind := h.by_kind;
    by_actor := h.by_actor;
    return next;
  end loop;
end
$$;

create view concord.conflicts as
  select commit_id, at, tenant, model, id, fields, kind, actor, by_kind, by_actor from concord_internal.conflicts_shown();
comment on view concord.conflicts is
  'Operations that were held (onStale "notify") and did not land, of the principal''s tenant; who owns the table sees every
tenant''s. kind, actor: whose operation; by_kind, by_actor: who had changed what it rested on (null: not known). id: null for
a create without an id. fields: what it would have written; null for the whole row (a delete). Visible under the rights of
concord.history. Kept as long as the setting retention says. Refusals leave no row.';

select concord_internal.open_to('concord_internal.conflicts_shown()', 'concord_app');
select concord_internal.open_view_to('concord.conflicts', 'concord_app');
