-- What the caller may see of a model's deltas, from the rights it has at this moment. The log is read by definers, so
-- nothing but this stands between it and the caller:
--   rights    as a SELECT would need them: USAGE on the schema, SELECT on the table or on columns. Columns that it may not
--             select vanish from fields and before. Without the key's columns it sees nothing, since the id is the key;
--             without a column of a group template, no groups.
--             A session that was narrowed sees models that it may read.
--   tenants   deltas of the principal's tenant, and of nobody ('') where the model is shared. Who owns the table sees all.
--             A change of the whole model belongs to no tenant and shows no row: whoever may select sees it.
--   policies  where row-level security binds the caller, and is what concord.protect put there, the log answers by the same
--             rule: it holds the tenant of each row, and its owner. Rows of others that are shared now may have been
--             otherwise then, so own rows are what is shown; and, without old values, what the acting principal wrote
--             itself. Of policies that somebody wrote the log can't tell which rows they would show (they judge rows that
--             are there, the log has rows as they were, and no definer may read the user's table): there a caller sees
--             only what it wrote itself, without old values.
--   secrets   fields that are secret now are named, and their values not shown, even if they were logged before.
create type concord_internal.sight as (
  model integer,
  name text,
  all_tenants boolean,
  shared boolean,
  own_only boolean,           -- row-level security binds the caller, and by policies that the log can't follow
  owned boolean,              -- it does, by an owner rule of concord.protect
  owner text,                 -- who the caller is there
  groups_only text[],         -- a session was narrowed to these
  fields text[],              -- null: all, also of columns that are gone
  valued text[],              -- fields whose values may be shown where no policy hides the row; null: all
  groups boolean              -- may be shown
);

create function concord_internal.sight(model integer)
returns concord_internal.sight
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant name := concord_internal.caller();
  m concord_internal.models;
  class pg_class;
  p concord_internal.protections;
  bound boolean;
  columns text[];
  s concord_internal.sight;
begin
  select * into m from concord_internal.models o where o.id = sight.model;
  select * into class from pg_class where oid = m.rel;
  if class.oid is null or not has_schema_privilege(who, class.relnamespace, 'usage') or not concord_internal.session_may(m.name, 'read') then
    return null;
  end if;
  columns := array(select attname from pg_attribute a
                    where a.attrelid = class.oid and a.attnum > 0 and not a.attisdropped
                      and has_column_privilege(who, class.oid, a.attnum, 'select'));
  if not columns @> m.key_columns::text[] then
    return null;
  end if;
  s.model := m.id;
  s.name := m.name;
  bound := class.relrowsecurity and not (pg_has_role(who, class.relowner, 'usage') and not class.relforcerowsecurity)
           and not coalesce((select rolsuper or rolbypassrls from pg_roles where rolname = who), false);
  s.own_only := false;
  s.owned := false;
  if bound then
    select * into p from concord_internal.protections o where o.rel = m.rel;
    s.own_only := p.id is null or p.predicate is not null or p.tenant_column is distinct from m.tenant_column
                  or exists (select from pg_policy o where o.polrelid = m.rel and not o.polpermissive and o.polname <> all (concord_internal.policy_names()));
    s.owned := not s.own_only and p.owner_column is not null and (p.writable is null or p.shared_column is not null);
    if s.owned then
      s.owner := concord_internal.owner_of(concord.principal(), p.delegated);
    end if;
  end if;
  s.groups_only := concord_internal.session_groups();
  s.all_tenants := not bound and pg_has_role(who, class.relowner, 'usage');
  s.shared := m.tenant = '' and m.tenant_column is null;
  if not has_table_privilege(who, class.oid, 'select') then
    s.fields := columns;
  end if;
  if m.secret_fields <> '{}' then  -- a name that is no column now may be a secret one's former name
    s.valued := array(select c from unnest(columns) c where c <> all (m.secret_fields::text[]));
  else
    s.valued := s.fields;
  end if;
  s.groups := columns @> array(select concord_internal.template_columns(m.groups));
  return s;
end
$$;

-- Is a delta of a row the caller's to see?
create function concord_internal.in_sight(d concord_internal.deltas, s concord_internal.sight, who concord.principal)
returns boolean
language sql
immutable
as $$
  select s.model is not null
     and (d.tenant = '' and s.shared or d.tenant = who.tenant or s.all_tenants) is true
     and (not s.own_only and not s.owned
          or s.owned and d.owner = s.owner
          or d.tenant in (who.tenant, '') and d.actor = who.id and concord_internal.kind_name(d.kind) = who.kind) is true
     and (s.groups_only is null or coalesce(d.groups::text[], array[d.grp]) && s.groups_only)
$$;

-- The delta as the caller may see it; null where it may not.
create function concord_internal.shown(d concord_internal.deltas, s concord_internal.sight, who concord.principal)
returns concord.change
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c concord.change;
  mine concord_internal.commits;
begin
  if s.model is null or d.op = 'g' then
    return null;
  end if;
  if d.key is not null and not concord_internal.in_sight(d, s, who) then
    return null;
  end if;
  if d.fields is not null then
    c.fields := d.fields::text[];
    if s.fields is not null then
      c.fields := array(select f from unnest(c.fields) f where f = any (s.fields));
      if c.fields = '{}' then
        return null;
      end if;
    end if;
  end if;
  if d.before is not null and not s.own_only and (not s.owned or d.owner = s.owner) and s.valued is distinct from '{}' then
    c.before := concord_internal.as_jsonb(d.before);
    if s.valued is not null then
      c.before := (select coalesce(jsonb_object_agg(key, value), '{}') from jsonb_each(c.before) where key = any (s.valued));
    end if;
  end if;
  if s.groups then
    c.groups := coalesce(d.groups::text[], array_remove(array[d.grp], null));
  end if;
  mine := concord_internal.commit_of(d);
  c.sync_id := d.seq;
  c.model := s.name;
  c.id := d.key;
  c.op := case d.op when 'c' then 'create' when 'u' then 'update' when 'd' then 'delete' when 't' then 'truncate' end;
  c.tenant := d.tenant;
  c.kind := concord_internal.kind_name(d.kind);
  c.actor := d.actor;
  c.on_behalf_of := d.on_behalf_of;
  if s.all_tenants or mine.tenant = who.tenant then  -- a shared model's deltas cross tenants, what was said of them does not
    c.label := mine.label;
  end if;
  c.commit_id := mine.id;
  c.at := d.at;
  return c;
end
$$;

select concord_internal.open_to('concord_internal.sight(integer)');
select concord_internal.open_to('concord_internal.in_sight(concord_internal.deltas,concord_internal.sight,concord.principal)');
select concord_internal.open_to('concord_internal.shown(concord_internal.deltas,concord_internal.sight,concord.principal)');
