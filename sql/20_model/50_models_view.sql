-- The models whose table the caller may select from or owns. Of a table that was dropped nobody can tell who might have: its
-- model is for administrators.
create function concord_internal.visible_models()
returns setof concord_internal.models
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select m.* from concord_internal.models m
   where has_any_column_privilege(concord_internal.caller(), m.rel, 'select') or concord_internal.owns(m.rel)
      or (concord_internal.is_admin() and not exists (select from pg_class c where c.oid = m.rel))
$$;

select concord_internal.open_to('concord_internal.visible_models()', 'public');

create view concord.models as
  select m.rel, m.name, nullif(m.tenant, '') as tenant, m.tenant_column, m.key_columns, m.groups, m.ignore_fields, m.secret_fields,
         m.detail, m.on_stale, m.archive_column, m.paused, m.tracked_at
    from concord_internal.visible_models() m;
comment on view concord.models is
  'The tracked tables that the caller may select from, or owns: rel, public name, tenant (null: shared, or per row by
tenant_column), key, groups, ignored and secret fields, detail (names or before), default modes, the column that archive and unarchive write, paused, since when. A table
that was dropped shows by its number to superusers and the owner of the database, until concord.maintain, concord.track or
concord.refresh next looks.';

select concord_internal.open_view_to('concord.models', 'public');

-- The same for an ORM, which asks in each of its transactions, in a plan that is made once for a session. Of each table: schema,
-- name, whether a bare name finds it, the model's name and key. It runs as the caller, under the caller's search_path.
create function concord_internal.models_of_tables()
returns jsonb
language plpgsql
stable
as $$
begin
  return (select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
                   n.nspname, c.relname, pg_catalog.pg_table_is_visible(c.oid), m.name, m.key_columns))
            from concord.models m
            join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) m.rel
            join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace);
end
$$;

select concord_internal.open_to('concord_internal.models_of_tables()', 'public');
