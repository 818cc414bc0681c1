-- What a table looks like now, as the generators and the drift checks see it.

-- A number for each live column, in order: they change when one comes, goes, or changes its name, order, type, collation or
-- generation. Made of oids, for speed: where they differ without need (user types after a restore, a partition that has
-- its columns in another order) the triggers take their fallback, which is slower and as exact.
-- VOLATILE, for a snapshot of its own: who waited for an ALTER TABLE would see the columns from before it.
create function concord_internal.shape(rel oid)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  return array(select hashnameextended(a.attname, (a.atttypid::bigint << 32 | a.attcollation::bigint) + a.attgenerated::integer)
                      # case when a.attgenerated <> '' then (select hashtextextended(pg_get_expr(d.adbin, rel), 0)
                                                               from pg_attrdef d where d.adrelid = rel and d.adnum = a.attnum) else 0 end
                 from pg_attribute a where a.attrelid = rel and a.attnum > 0 and not a.attisdropped order by a.attnum);
end
$$;

-- The shape, and one number more for what a commit has to look at closely (altered, below): it changes with any DDL on a
-- column, with an enum's labels, and when the table comes into an inheritance tree. That the triggers need not know.
create function concord_internal.signature(rel oid)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  return concord_internal.shape(rel) || (
    select hash_array_extended(array_agg(hashtextextended(a.xmin::text, a.attnum)
             # case when a.atttypid < 16384 then 0 else (coalesce(concord_internal.labels_of(a.atttypid), '{0,0}'))[2] end order by a.attnum),
             (select (c.relkind = 'r' and c.relhassubclass)::integer + 2 * c.relispartition::integer from pg_class c where c.oid = rel)
             + 4 * exists (select from pg_inherits where inhrelid = rel)::integer)
      from pg_attribute a where a.attrelid = rel and a.attnum > 0 and not a.attisdropped);
end
$$;

-- The labels of the enums that a type is made of (itself, the base of a domain, an element, a field), as two numbers: the
-- highest oid among them, and a hash over the labels up to such an oid (all: null), so that a value added later leaves it
-- the same. Null where there is no enum.
create function concord_internal.labels_of(type oid, up_to bigint default null)
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  parts oid[] := array[type];
  outer_type record;
begin
  select typtype, typsubscript into outer_type from pg_type where oid = type;
  if outer_type.typtype = 'b' and outer_type.typsubscript <> 'array_subscript_handler'::regproc then
    return null;
  elsif outer_type.typtype <> 'e' then
    parts := array(
      with recursive part(typ) as (
        select type
        union
        select n.typ
          from part join pg_type t on t.oid = part.typ
         cross join lateral (
           select t.typbasetype where t.typtype = 'd'
           union all select t.typelem where t.typsubscript = 'array_subscript_handler'::regproc
           union all select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
           union all select r.rngsubtype from pg_range r where r.rngtypid = t.oid or r.rngmultitypid = t.oid) n(typ)
         where n.typ >= 16384)
      select typ from part);
  end if;
  return (
    select array[max(e.oid::bigint), hashtextextended(string_agg(format('%s:%s', e.oid, quote_ident(e.enumlabel)), ',' order by e.oid), 0)]
      from pg_enum e
     where e.enumtypid = any (parts) and (up_to is null or e.oid::bigint <= up_to)
    having count(*) > 0);
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
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
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
  return (select 'pg_catalog.jsonb_build_object(' ||
                 string_agg(format('%L, %s', name,
                   case when columns->(name::text)->>'t' in ('smallint', 'integer', 'bigint')
                        then format('%s.%I', alias, name) else part[n] end), ', ' order by n) || ')::text'
            from unnest(key_columns) with ordinality k(name, n));
end
$$;

-- One value as text, the same in every session where the settings that make_trigger_functions pins are in force; and text
-- that the type takes back: also of years BC (whose zone stands before the BC) and of infinity (which has none).
-- Without a backslash: in the caller's session it may mean another thing in a literal.
create function concord_internal.stable_text(expression text, type text)
returns text
language sql
immutable
return case
  when type in ('date') or type like 'timestamp%without time zone' then format('pg_catalog.to_jsonb(%s) operator(pg_catalog.#>>) ''{}''', expression)
  when type like 'timestamp%with time zone' then
    format('pg_catalog.replace(pg_catalog.replace((pg_catalog.to_jsonb(pg_catalog.timezone(''UTC'', %s)) operator(pg_catalog.#>>) ''{}'')'
           ' operator(pg_catalog.||) ''Z'', '' BCZ'', ''Z BC''), ''infinityZ'', ''infinity'')', expression)
  when type = 'bytea' then format('pg_catalog.chr(92) operator(pg_catalog.||) ''x'' operator(pg_catalog.||) pg_catalog.encode(%s, ''hex'')', expression)
  when type in ('uuid', 'text', 'smallint', 'integer', 'bigint') or type like 'character varying%' then expression || '::text'
  else format('pg_catalog.format(''%%s'', %s)', expression)
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
select concord_internal.open_to('concord_internal.shape(oid)', 'public');
select concord_internal.open_to('concord_internal.labels_of(oid,bigint)', 'public');
select concord_internal.open_to('concord_internal.signature(oid)', 'public');
select concord_internal.open_to('concord_internal.columns_of(oid)', 'public');
select concord_internal.open_to('concord_internal.any_value_columns(jsonb)', 'public');
select concord_internal.open_to('concord_internal.key_columns_of(oid)', 'public');
select concord_internal.open_to('concord_internal.key_expression(name[],jsonb,text)', 'public');
select concord_internal.open_to('concord_internal.stable_text(text,text)', 'public');
