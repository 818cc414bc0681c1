-- DDL that changes rows, or which rows there are, and fires no trigger: ALTER COLUMN TYPE … USING with the type it has, a
-- column that is dropped and added under its name, other labels of an enum, another expression of a generated column, a
-- partition that comes or goes. Each leaves a mark in the catalogs, and the marks are compared with those from when the
-- model was defined. Most DDL leaves marks too, and refuses nobody: so it takes those that go together.

-- oid     the table, as a number, so that a dump leaves it as it is
-- server  the system identifier: of the same server, xmin and relfilenode can be compared
-- place   of each column
-- xmin    of each column's row in pg_attribute: any DDL on the column
-- files   a hash over the relfilenodes of the table and its partitions: rewritten, truncated
-- parts   a hash over pg_inherits below the table, with xmin: attached, detached
-- labels  see labels_of, for columns that have some. was: earlier marks; labels added after them are left out
-- expressions  of generated columns: a hash over their text, which a column's new name changes, and one over their tree,
--              which a restore changes
-- (PL/pgSQL, so that it is planned once in a session: commits on a table that DDL has touched ask.)
create function concord_internal.marks_of(rel regclass, was jsonb default null)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select jsonb_strip_nulls(jsonb_build_object(
    'oid', rel::oid::bigint,
    'server', case when was is null then (pg_control_system()).system_identifier::text end,
    'place', jsonb_object_agg(a.attname, a.attnum),
    'xmin', jsonb_object_agg(a.attname, a.xmin::text),
    'files', (select hash_array_extended(array_agg(c.relfilenode::bigint order by c.oid), 0)
                from (select rel::oid union select relid from pg_partition_tree(rel)) r(oid) join pg_class c on c.oid = r.oid),
    'parts', (select hash_array_extended(array_agg(hashtextextended(i.xmin::text, i.inhrelid::bigint) order by i.inhrelid), 0)
                from pg_partition_tree(rel) p join pg_inherits i on i.inhrelid = p.relid where p.level > 0),
    'labels', jsonb_object_agg(a.attname, to_jsonb(concord_internal.labels_of(a.atttypid, (was->'labels'->a.attname->>0)::bigint)))
                filter (where a.atttypid >= 16384),
    'expressions', (select jsonb_object_agg(g.attname, jsonb_build_array(hashtextextended(pg_get_expr(d.adbin, d.adrelid), 0), hashtextextended(d.adbin::text, 0)))
                      from pg_attribute g join pg_attrdef d on d.adrelid = g.attrelid and d.adnum = g.attnum
                     where g.attrelid = rel and g.attgenerated <> '')))
    from pg_attribute a where a.attrelid = rel and a.attnum > 0 and not a.attisdropped);
end
$$;

-- What has changed since the model was defined that its log can't tell: `how` is column (`what` says which), partitions,
-- or inheritance (rows are, or can be, written without its triggers); null when nothing has. After a restore or
-- pg_upgrade marks can't be compared (and there are no tokens from before it): until refresh such DDL goes unnoticed.
-- What breaks it: pg_attribute written by hand.
create function concord_internal.altered(m concord_internal.models, out how text, out what text)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  live jsonb;
begin
  if exists (select from pg_inherits where inhrelid = m.rel) or not m.partitioned and exists (select from pg_inherits where inhparent = m.rel) then
    how := 'inheritance';
    return;
  end if;
  live := concord_internal.marks_of(m.rel, m.marks);
  if live - 'server' = m.marks - 'server' or live->'oid' <> m.marks->'oid' then
    return;
  end if;
  what := (
    select min(c) from jsonb_object_keys(m.marks->'place') c
     where live->'place' ? c
       and (live->'place'->c <> m.marks->'place'->c
            or live->'xmin'->c <> m.marks->'xmin'->c and live->'files' <> m.marks->'files'
            or live->'labels'->c <> m.marks->'labels'->c
            or live->'expressions'->c->0 <> m.marks->'expressions'->c->0 and live->'expressions'->c->1 <> m.marks->'expressions'->c->1));
  how := case when what is not null then 'column' when live->'parts' is distinct from m.marks->'parts' then 'partitions' end;
  if how is not null and (pg_control_system()).system_identifier::text <> m.marks->>'server' then
    how := null;
    what := null;
  end if;
end
$$;

select concord_internal.open_to('concord_internal.marks_of(regclass,jsonb)');
select concord_internal.open_to('concord_internal.altered(concord_internal.models)');
