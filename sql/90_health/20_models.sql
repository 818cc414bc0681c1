create type concord.finding as (level text, code text, model text, detail text, remedy text);
comment on type concord.finding is
  'Something that concord.verify() found. level: error (a promise does not hold) or warning (it will not hold, or it costs).
code: which kind. model: null where it is not about one. remedy: what to run or to do.';

-- What can go wrong with a tracked table: somebody altered it, or its triggers, with plain DDL.
create function concord_internal.model_findings(m concord_internal.models)
returns setof concord.finding
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  class pg_class;
  live jsonb;
  keys name[];
  part regclass;
  t record;
  gone text;
  changed text;
  drift record;
begin
  select * into class from pg_class where oid = m.rel;
  if class.oid is null then
    return next row('warning', 'table_gone', m.name, 'the table was dropped', 'select concord.maintain();')::concord.finding;
    return;
  end if;
  live := concord_internal.columns_of(m.rel);
  keys := concord_internal.key_columns_of(m.rel);

  for part in select r from concord_internal.bare_relations(m.rel) r
               where 4 > (select count(*) from pg_trigger g where g.tgrelid = r and not g.tgisinternal
                             and g.tgname in ('concord_insert', 'concord_update', 'concord_delete', 'concord_truncate')) loop
    return next row('error', 'trigger_missing', m.name,
      format('%s lacks a trigger of concord: what is written there is not logged, and guarded writes are model_changed', part),
      format('select concord.refresh(%L);', m.rel))::concord.finding;
  end loop;
  for t in
    select g.*, r.rel, substr(g.tgname, 9) as op
      from concord_internal.relations_of(m.rel) r(rel)
      join pg_trigger g on g.tgrelid = r.rel and not g.tgisinternal
                       and g.tgname in ('concord_insert', 'concord_update', 'concord_delete', 'concord_truncate')
     order by r.rel::text, g.tgname
  loop
    if t.tgenabled not in ('O', 'A') then
      return next row('error', 'trigger_disabled', m.name, format('trigger %I on %s is disabled', t.tgname, t.rel),
        format('alter table %s enable trigger %I; and then, since the log does not know what happened meanwhile: select concord.pause(%L), concord.resume(%L);',
               t.rel, t.tgname, m.rel, m.rel))::concord.finding;
    end if;
    if t.tgfoid is distinct from to_regprocedure(concord_internal.trigger_function(m.id, t.op) || '()')
       or t.tgtype <> (case t.op when 'insert' then 4 when 'delete' then 8 when 'update' then 16 else 32 end)
       or t.tgqual is not null or t.tgattr <> ''::int2vector or t.tgdeferrable
       or (t.tgoldtable is not null) <> (t.op in ('update', 'delete')) or (t.tgnewtable is not null) <> (t.op in ('insert', 'update')) then
      return next row('error', 'trigger_altered', m.name, format('trigger %I on %s is not as concord made it', t.tgname, t.rel),
        format('drop trigger %I on %s; select concord.refresh(%L);', t.tgname, t.rel, m.rel))::concord.finding;
    end if;
  end loop;
  -- A trigger of this model elsewhere: under another name, or on a partition that was detached with it.
  for t in
    select g.tgname, g.tgrelid::regclass as rel
      from pg_trigger g
     where g.tgfoid = any (array(select to_regprocedure(concord_internal.trigger_function(m.id, o) || '()')
                                   from unnest(array['insert', 'update', 'delete', 'truncate']) o))
       and (g.tgrelid <> all (array(select r from concord_internal.relations_of(m.rel) r))
            or g.tgname not in ('concord_insert', 'concord_update', 'concord_delete', 'concord_truncate'))
     order by 2, 1
  loop
    return next row('error', 'trigger_astray', m.name, format('trigger %I on %s logs what is not there for this model', t.tgname, t.rel),
      format('drop trigger %I on %s;', t.tgname, t.rel))::concord.finding;
  end loop;

  if keys is distinct from m.key_columns then
    return next row('error', 'key_changed', m.name, case when keys is null then 'the primary key is gone'
        else format('the primary key is (%s), and was (%s)', array_to_string(keys, ', '), array_to_string(m.key_columns, ', ')) end,
      case when keys is null then format('add a primary key, then select concord.refresh(%L); or select concord.untrack(%L);', m.rel, m.rel)
           else format('select concord.refresh(%L);', m.rel) end)::concord.finding;
  elsif exists (select from pg_index where indrelid = m.rel and indisprimary and not indimmediate) then
    return next row('error', 'key_deferrable', m.name, 'the primary key is DEFERRABLE: two rows may share an id until commit',
      'make it NOT DEFERRABLE')::concord.finding;
  elsif exists (select from unnest(keys) k where not concord_internal.usable_as_key(m.rel, k, live->(k::text))) then
    return next row('error', 'key_unusable', m.name, 'equal values of the key may look different now',
      format('give the key another type, then select concord.refresh(%L); or select concord.untrack(%L);', m.rel, m.rel))::concord.finding;
  end if;
  drift := concord_internal.altered(m);
  changed := coalesce(concord_internal.retyped(m.columns, live), case when drift.how = 'column' then drift.what end);
  if changed is not null then
    return next row('error', 'column_retyped', m.name,
      format('column %I changed its type, collation, generation or labels, or ALTER TABLE may have changed its values: guarded writes are model_changed', changed),
      format('select concord.refresh(%L);', m.rel))::concord.finding;
  elsif trim_array(concord_internal.signature(m.rel), 1) <> trim_array(m.signature, 1) then
    return next row('warning', 'columns_changed', m.name, 'columns came, went or were renamed: the triggers compare them the slow way',
      format('select concord.refresh(%L);', m.rel))::concord.finding;
  end if;
  gone := (select string_agg(quote_ident(c), ', ' order by c) from (
             select m.tenant_column::text union select concord_internal.template_columns(m.groups)) u(c)
            where not live ? c);
  if gone is not null then
    return next row('error', 'definition_broken', m.name,
      format('the tenant or a group needs column %s, which is gone: each write counts as a change of the whole model', gone),
      format('select concord.track(%L, …); with a definition over the columns that there are', m.rel))::concord.finding;
  end if;

  if drift.how = 'partitions' and not exists (select from concord_internal.bare_relations(m.rel)) then
    return next row('error', 'partitions_changed', m.name, 'partitions came or went, with rows that are in no log: guarded writes are model_changed',
      format('select concord.refresh(%L);', m.rel))::concord.finding;
  end if;
  if m.paused then
    return next row('warning', 'paused', m.name, 'nothing is logged, and guarded writes are model_changed',
      format('select concord.resume(%L);', m.rel))::concord.finding;
  end if;
  for part in select r from concord_internal.relations_of(m.rel) r where exists (select from pg_subscription_rel s where s.srrelid = r) loop
    return next row('error', 'subscribed', m.name, format('%s is subscribed: replication applies rows without firing the triggers', part),
      'drop the table from the publication, or select concord.untrack() on the table')::concord.finding;
  end loop;
  if class.relispartition then
    return next row('error', 'now_a_partition', m.name, 'the table became a partition: what is written through its parent is not logged',
      format('select concord.untrack(%L); and track the partitioned table', m.rel))::concord.finding;
  elsif class.relkind = 'r' and exists (select from pg_inherits where inhparent = m.rel or inhrelid = m.rel) then
    return next row('error', 'inheritance', m.name, 'the table is in an inheritance tree: its key is not unique over its children',
      format('select concord.untrack(%L); or take it out: alter table … no inherit …', m.rel))::concord.finding;
  end if;
end
$$;

select concord_internal.open_to('concord_internal.model_findings(concord_internal.models)');
