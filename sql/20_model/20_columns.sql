-- What a table looks like now, as the generators and the drift checks see it.

-- A number for each live column, in order: they change when one comes, goes, or changes its name, order, type, collation or
-- generation. Made of oids, for speed: where they differ without need (user types after a restore, a partition that has
-- its columns in another order) the triggers take their fallback, which is slower and as exact.
-- VOLATILE, for a snapshot of its own: who waited for an ALTER TABLE would see the columns from before it.
create function concord_internal.signature(rel oid)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select hashnameextended(a.attname, (a.atttypid::bigint << 32 | a.attcollation::bigint) + a.attgenerated::integer)
                 from pg_attribute a where a.attrelid = rel and a.attnum > 0 and not a.attisdropped order by a.attnum);
end
$$;

-- Live columns by name: t the type as SQL, n the position, and where they apply: c collation, g generation (s stored,
-- v virtual, as in pg_attribute), foreign: the type (or its element) does not belong to pg_catalog, identity: IS DISTINCT
-- FROM tells any two images apart, varlena: may be toasted. Kept short: every commit reads it.
create function concord_internal.columns_of(rel oid)
returns jsonb
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(a.attname, jsonb_strip_nulls(jsonb_build_object(
           't', format_type(a.atttypid, a.atttypmod),
           'c', case when a.attcollation not in (0, 100) then a.attcollation::regcollation::text end,
           'g', nullif(a.attgenerated::text, ''),
           'foreign', nullif(coalesce(el.typnamespace, ty.typnamespace) <> 'pg_catalog'::regnamespace, false),
           'identity', nullif((
              select p.amproc = 'btequalimage'::regproc
                     or (p.amproc = 'btvarstrequalimage'::regproc and co.collisdeterministic)
                from pg_opclass oc
                join pg_amproc p on p.amprocfamily = oc.opcfamily and p.amproclefttype = oc.opcintype
                                and p.amprocrighttype = oc.opcintype and p.amprocnum = 4
               where oc.opcmethod = 403 and oc.opcdefault
                 and oc.opcintype = case when ty.typname = 'varchar' then 'text'::regtype else ty.oid end
                 and ty.typnamespace = 'pg_catalog'::regnamespace), false),
           'varlena', nullif(a.attlen = -1 and a.attstorage <> 'p', false),
           'n', a.attnum)))
    from pg_attribute a
    join pg_type ty on ty.oid = a.atttypid
    left join pg_type el on el.oid = ty.typelem and ty.typsubscript = 'array_subscript_handler'::regproc
    left join pg_collation co on co.oid = a.attcollation
   where a.attrelid = rel and a.attnum > 0 and not a.attisdropped
$$;

create function concord_internal.any_value_columns(columns jsonb)
returns text[]
language sql
immutable
as $$
  select coalesce(array_agg(c), '{}') from jsonb_object_keys(columns) c
   where columns->c->>'t' in ('text', 'json', 'jsonb') and not columns->c ? 'g'
$$;

-- The columns of the primary key, in key order; null where there is none.
create function concord_internal.key_columns_of(rel oid)
returns name[]
language sql
stable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(a.attname order by k.n)
    from pg_index i
   cross join lateral unnest(i.indkey::smallint[]) with ordinality k(attnum, n)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
   where i.indrelid = rel and i.indisprimary and k.n <= i.indnkeyatts
$$;

-- The key of a row as text, whatever TimeZone, DateStyle or bytea_output say: an SQL expression over `alias`.
-- One column: its own text. Several: a JSON object of them, which jsonb puts into one order.
create function concord_internal.key_expression(key_columns name[], columns jsonb, alias text)
returns text
language plpgsql
immutable
as $$
declare
  part text[];
  col text;
begin
  foreach col in array key_columns loop
    part := part || concord_internal.stable_text(format('%s.%I', alias, col), columns->col->>'t');
  end loop;
  if array_length(part, 1) = 1 then
    return part[1];
  end if;
  return (select 'jsonb_build_object(' ||
                 string_agg(format('%L, %s', name,
                   case when columns->(name::text)->>'t' in ('smallint', 'integer', 'bigint')
                        then format('%s.%I', alias, name) else part[n] end), ', ' order by n) || ')::text'
            from unnest(key_columns) with ordinality k(name, n));
end
$$;

-- One value as text, the same in every session.
create function concord_internal.stable_text(expression text, type text)
returns text
language sql
immutable
return case
  when type in ('date') or type like 'timestamp%without time zone' then format('to_jsonb(%s) #>> ''{}''', expression)
  when type like 'timestamp%with time zone' then
    format('replace(replace((to_jsonb(%s at time zone ''UTC'') #>> ''{}'') || ''Z'', '' BCZ'', ''Z BC''), ''infinityZ'', ''infinity'')', expression)
  when type = 'bytea' then format('chr(92) || ''x'' || encode(%s, ''hex'')', expression)
  when type in ('uuid', 'text', 'smallint', 'integer', 'bigint') or type like 'character varying%' then expression || '::text'
  else format('format(''%%s'', %s)', expression)
end;

-- The columns that group templates name.
create function concord_internal.template_columns(templates text[])
returns setof text
language sql
immutable
as $$
  select c[1] from unnest(templates) t, regexp_matches(t, '\{([^}]*)\}', 'g') c
$$;

select concord_internal.open_to('concord_internal.template_columns(text[])');
select concord_internal.open_to('concord_internal.signature(oid)', 'public');
select concord_internal.open_to('concord_internal.columns_of(oid)', 'public');
select concord_internal.open_to('concord_internal.any_value_columns(jsonb)', 'public');
select concord_internal.open_to('concord_internal.key_columns_of(oid)', 'public');
select concord_internal.open_to('concord_internal.key_expression(name[],jsonb,text)', 'public');
select concord_internal.open_to('concord_internal.stable_text(text,text)', 'public');
