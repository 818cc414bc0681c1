-- The statement that a generated trigger runs: one INSERT ... SELECT from the transition tables into the log, with a
-- static comparison for each column. The same text, built from the live columns and run by EXECUTE, is the fallback when
-- columns came, went or were renamed since the trigger was made, so that there is one definition of a delta.
--
-- Rows are paired by key (and by tenant, so that a move between tenants is a delete here and a create there). The FULL
-- JOIN does two things: a changed key becomes a delete and a create; and it can't be a nested loop, whatever row count
-- the cached plan was made for.
--
-- Most statements change one row and neither its key, tenant nor group. For them there is a shorter text, of one row from
-- each side and no join to prepare; it writes nothing when any of this does not hold, and then the whole text is asked.

-- Is the column different between o and n? Equality is not identity (numeric scale, -0, citext), so only types whose
-- btree class says so are compared by IS DISTINCT FROM, the others by image. A value toasted under the same id is the
-- same value, and need not be fetched (Postgres 17 and later can tell).
create function concord_internal.difference(rel oid, col text, columns jsonb)
returns text
language plpgsql
stable
as $$
declare
  def constant jsonb := columns->col;
  comparison text;
begin
  if def->>'g' = 'v' then  -- virtual: not in the transition table; changes when an input does
    return coalesce(
      (select '(' || string_agg(concord_internal.difference(rel, a.attname, columns), ' or ') || ')'
         from pg_attrdef ad
         join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = ad.oid
                         and d.refclassid = 'pg_class'::regclass and d.refobjid = rel and d.refobjsubid > 0
         join pg_attribute a on a.attrelid = rel and a.attnum = d.refobjsubid
        where ad.adrelid = rel and ad.adnum = (def->>'n')::integer and a.attname <> col), 'false');
  end if;
  if (def->>'identity')::boolean then
    comparison := format('o.%1$I is distinct from n.%1$I', col);
  else
    comparison := format('record_image_ne(row(o.%1$I), row(n.%1$I))', col);
  end if;
  if (def->>'varlena')::boolean and current_setting('server_version_num')::integer >= 170000 then
    comparison := format('case when pg_column_toast_chunk_id(o.%1$I) = pg_column_toast_chunk_id(n.%1$I) then false else %2$s end',
                         col, comparison);
  end if;
  return comparison;
end
$$;

-- A value as JSON text. A type outside pg_catalog (an array of one, too) is taken by its output function alone: to_json
-- would run a cast to json that its owner wrote, with the rights of whoever evaluates this. (num_nulls and not IS NULL:
-- a composite of nulls is not null itself.) What names an object, a regclass for one, is taken as the object's oid: its
-- text follows the search_path, and the object's name. It reads back as the same value.
create function concord_internal.json_expression(expression text, def jsonb)
returns text
language sql
immutable
return case when def->>'t' ~ '^reg(class|collation|config|dictionary|namespace|oper|operator|proc|procedure|role|type)(\[\])?$'
              then format('coalesce(pg_catalog.to_json(%s::oid%2$s::text%2$s)::text, ''null'')', expression, substring(def->>'t', '\[\]'))
            when (def->'foreign') is null then format('coalesce(pg_catalog.to_json(%s)::text, ''null'')', expression)
            else format('case when pg_catalog.num_nulls(%1$s) operator(pg_catalog.=) 1 then ''null'' else pg_catalog.to_json(pg_catalog.format(''%%s'', %1$s))::text end', expression) end;

-- 'deck:{deck_id}' as an SQL expression over `alias`; null columns give a null group.
create function concord_internal.group_expression(template text, columns jsonb, alias text)
returns text
language sql
stable
as $$
  select string_agg(case when n % 2 = 1 then quote_literal(piece)
                         else '(' || concord_internal.stable_text(format('%s.%I', alias, piece), columns->piece->>'t') || ')' end,
                    ' || ' order by n)
    from regexp_split_to_table(template, '[{}]') with ordinality p(piece, n)
$$;

-- Names of columns that differ, as the literal of a name[]. (A call takes 100 arguments at most.)
create function concord_internal.fields_expression(rel oid, logged text[], columns jsonb)
returns text
language sql
stable
as $$
  select '''{'' || ' || case when count(*) < 99 then 'concat_ws('','', ' || string_agg(piece, ', ' order by i) || ')'
                             else 'array_to_string(array[' || string_agg(piece, ', ' order by i) || '], '','')' end || ' || ''}'''
    from (select i, format('case when %s then %L end', concord_internal.difference(rel, c, columns), substr(q, 2, length(q) - 2)) as piece
            from unnest(logged) with ordinality u(c, i), lateral (select (array[c])::text) l(q)) p
$$;

-- The statement, or null when rows can't be told from the live columns (a key, tenant or group column is gone): then only
-- a whole-model delta is sound. by_kind, by_actor, for_whom and by_epoch are the trigger's variables; where the statement is
-- executed from text they are $1 to $4 (put in while it is built: the finished text holds names of users). alone: the shorter text for one updated row; null where the model has none.
-- beside: only the rows in which something beside these fields changed (see 55_bulk).
create function concord_internal.delta_statement(m concord_internal.models, rel oid, op text, variables boolean, alone boolean default false,
                                                 beside name[] default null)
returns text
language plpgsql
stable
as $$
declare
  columns constant jsonb := concord_internal.columns_of(rel);
  keys constant name[] := concord_internal.key_columns_of(rel);
  logged text[];      -- columns that make deltas
  tenant text;
  row_key text;
  old_groups text[];
  new_groups text[];
  spans text;         -- groups of the row, an array expression
  most integer;       -- how many groups a delta can touch
  source text;
  fields text := 'null::text';
  before text := 'null::text';
  steady text;        -- what does not change in a row of the shorter text
  owner_column constant name := (select p.owner_column from concord_internal.protections p where p.rel = m.rel);
  owner text := 'null::text';
  insertion text;
  by_kind constant text := case when variables then 'by_kind' else '$1' end;
  by_actor constant text := case when variables then 'by_actor' else '$2' end;
  for_whom constant text := case when variables then 'for_whom' else '$3' end;
  by_epoch constant text := case when variables then 'by_epoch' else '$4' end;
begin
  if keys is null or cardinality(keys) <> cardinality(m.key_columns) or (cardinality(keys) > 1 and keys <> m.key_columns)
     or (m.tenant_column is not null and not columns ? m.tenant_column::text)
     or exists (select from unnest(m.groups) g, regexp_matches(g, '\{([^}]*)\}', 'g') c where not columns ? c[1]) then
    return null;
  end if;
  if alone and (op <> 'update' or cardinality(m.groups) > 1) then
    return null;
  end if;
  select array_agg(c order by (columns->c->>'n')::integer) into logged
    from jsonb_object_keys(columns) c where c <> all (m.ignore_fields) and not (alone and c::name = any (keys));
  if alone and logged is null then  -- nothing but the key
    return null;
  end if;

  source := case op when 'insert' then 'new_rows n' when 'delete' then 'old_rows o'
    else 'old_rows o full join new_rows n on ' ||
         (select string_agg(format('o.%1$I = n.%1$I', k), ' and ') from unnest(keys) k) ||
         case when m.tenant_column is null then ''
              else format(' and coalesce(%s, '''') = coalesce(%s, '''')',
                     concord_internal.stable_text(format('o.%I', m.tenant_column), columns->(m.tenant_column::text)->>'t'),
                     concord_internal.stable_text(format('n.%I', m.tenant_column), columns->(m.tenant_column::text)->>'t')) end end;
  row_key := case op when 'insert' then concord_internal.key_expression(keys, columns, 'n')
                     when 'delete' then concord_internal.key_expression(keys, columns, 'o')
    else format('case when n.%1$I is null then %2$s else %3$s end', keys[1],
                concord_internal.key_expression(keys, columns, 'o'), concord_internal.key_expression(keys, columns, 'n')) end;
  tenant := case
    when m.tenant_column is null then quote_literal(m.tenant)
    when op = 'update' and not alone then format('coalesce(%s, %s, '''')',
      concord_internal.stable_text(format('n.%I', m.tenant_column), columns->(m.tenant_column::text)->>'t'),
      concord_internal.stable_text(format('o.%I', m.tenant_column), columns->(m.tenant_column::text)->>'t'))
    else format('coalesce(%s, '''')', concord_internal.stable_text(
      format('%s.%I', case op when 'delete' then 'o' else 'n' end, m.tenant_column), columns->(m.tenant_column::text)->>'t')) end;

  old_groups := array(select concord_internal.group_expression(g, columns, 'o') from unnest(m.groups) g);
  new_groups := array(select concord_internal.group_expression(g, columns, 'n') from unnest(m.groups) g);
  if alone then
    source := 'old_rows o, new_rows n';
    row_key := concord_internal.key_expression(keys, columns, 'n');
    steady := concat_ws(' and ', (select string_agg(format('o.%1$I = n.%1$I', k), ' and ') from unnest(keys) k),
      case when m.tenant_column is not null then format('coalesce(%s, '''') = %s',
        concord_internal.stable_text(format('o.%I', m.tenant_column), columns->(m.tenant_column::text)->>'t'), tenant) end,
      old_groups[1] || ' is not distinct from ' || new_groups[1]);
    spans := format('array[%s]', new_groups[1]);
    most := cardinality(m.groups);
  elsif op = 'update' then
    spans := (select string_agg(e, ', ') from unnest(new_groups || old_groups) e);
    most := 2 * cardinality(m.groups);
    spans := case when cardinality(m.groups) = 1
      then format('case when %1$s = %2$s then array[%1$s] else array_remove(array[%1$s, %2$s], null) end', new_groups[1], old_groups[1])
      else format('array(select distinct g from unnest(array[%s]) g where g is not null)', spans) end;
  else
    spans := format('array_remove(array[%s]::text[], null)',
               (select string_agg(e, ', ') from unnest(case op when 'insert' then new_groups else old_groups end) e));
    most := cardinality(m.groups);
  end if;

  if op = 'update' then
    fields := concord_internal.fields_expression(rel, logged, columns);
    if not alone then
      fields := format('case when o.%1$I is not null and n.%1$I is not null then %2$s end', keys[1], fields);
    end if;
  end if;
  if m.detail = 'before' and op <> 'insert' then
    before := (select '''{'' || array_to_string(array[' || string_agg(format(
                        case when op <> 'update' then '%1$L || %2$s'
                             when alone then 'case when %3$s then %1$L || %2$s end'
                             when c = any (m.ignore_fields) then 'case when n.%4$I is null then %1$L || %2$s end'  -- a moved key
                             else 'case when n.%4$I is null or %3$s then %1$L || %2$s end' end,
                        to_json(c) || ':', concord_internal.json_expression(format('o.%I', c), columns->c),
                        case when op = 'update' then concord_internal.difference(rel, c, columns) end, keys[1]), ', ')
                      || '], '','') || ''}'''
                 from jsonb_object_keys(columns) c
                where c <> all (m.secret_fields) and columns->c->>'g' is distinct from 'v' and (not alone or c = any (logged))
                  and (m.secret_fields = '{}' or m.columns ? c));  -- a column unknown so far may be a secret one, renamed
    if op = 'update' and not alone then
      before := 'case when o.' || quote_ident(keys[1]) || ' is not null then ' || before || ' end';
    end if;
    before := coalesce(before, 'null::text');  -- every column is secret
  end if;

  if columns ? owner_column::text then
    owner := concord_internal.stable_text(format('%s.%I', case op when 'delete' then 'o' else 'n' end, owner_column), columns->(owner_column::text)->>'t');
    if op = 'update' then
      owner := format('case when o.%1$I is null then n.%2$I when n.%1$I is null then o.%2$I when o.%2$I = n.%2$I then n.%2$I end', keys[1], owner_column);
      owner := concord_internal.stable_text('(' || owner || ')', columns->(owner_column::text)->>'t');
    end if;
  end if;

  source := format('(select %s as op, %s as tenant, %s as key, %s as spans, %s as fields, %s as before, %s as owner from %s%s offset 0) d',
    case when op = 'insert' then '''c''::"char"' when op = 'delete' then '''d''::"char"' when alone then '''u''::"char"'
      else format('case when o.%1$I is null then ''c'' when n.%1$I is null then ''d'' else ''u'' end::"char"', keys[1]) end,
    tenant, row_key, case when most = 0 then 'null::text[]' else spans end, fields, before, owner, source, ' where ' || steady);
  if most > 1 then
    source := source || format(' join (values %s) i(n) on i.n = 1 or d.spans[i.n] is not null',
                               (select string_agg(format('(%s)', i), ', ') from generate_series(1, most) i));
  end if;
  insertion := 'insert into concord_internal.deltas '
    '(xid, seq, at, epoch, model, depth, op, kind, tenant, key, grp, fields, actor, on_behalf_of, groups, before, owner) select '
    'pg_current_xact_id(), nextval(''concord_internal.delta_seq''), clock_timestamp(), ' || by_epoch || ', ' || m.id ||
    ', pg_trigger_depth(), ' ||
    case when most > 1
      then 'case when i.n = 1 then d.op else ''g'' end, ' || by_kind || ', d.tenant, case when i.n = 1 then d.key end, d.spans[i.n], '
           'case when i.n = 1 then d.fields end, ' || by_actor || ', ' || for_whom || ', '
           'case when i.n = 1 and cardinality(d.spans) > 1 then d.spans::text end, case when i.n = 1 then d.before end, d.owner'
      else 'd.op, ' || by_kind || ', d.tenant, d.key, ' || case when most = 0 then 'null' else 'd.spans[1]' end ||
           ', d.fields, ' || by_actor || ', ' || for_whom || ', null, d.before, d.owner' end ||
    ' from ' || source;
  if op = 'update' then
    insertion := insertion || ' where ' || case when beside is null then 'd.fields <> ''{}'''
      else format('not d.fields::name[] <@ %L::name[]', beside) end || ' or d.fields is null';
  end if;
  return insertion;
end
$$;

select concord_internal.open_to('concord_internal.difference(oid,text,jsonb)');
select concord_internal.open_to('concord_internal.json_expression(text,jsonb)', 'public');
select concord_internal.open_to('concord_internal.group_expression(text,jsonb,text)', 'public');
select concord_internal.open_to('concord_internal.fields_expression(oid,text[],jsonb)');
select concord_internal.open_to('concord_internal.delta_statement(concord_internal.models,oid,text,boolean,boolean,name[])');
