-- How large everything is. From the statistics that the server keeps anyway, so that looking costs next to nothing.

-- Deltas by model, estimated: what ANALYZE found out about the column `model` of each leaf.
create function concord_internal.deltas_by_model()
returns jsonb
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(jsonb_object_agg(t.name, t.n order by t.name), '{}') from (
    select case when m.tenant = '' then m.name else m.tenant || '/' || m.name end as name, round(sum(c.reltuples * v.freq))::bigint as n
      from concord_internal.leaves() l
      join pg_class c on c.oid = l.leaf and c.reltuples > 0
      join pg_stats s on s.schemaname = 'concord_internal' and s.tablename = c.relname and s.attname = 'model'
     cross join lateral unnest(s.most_common_vals::text::integer[], s.most_common_freqs) v(model, freq)
      join concord_internal.models m on m.id = v.model
     group by 1) t
$$;

create function concord_internal.stats_shown(
  out deltas bigint, out log_bytes bigint, out index_bytes bigint, out leaves integer, out default_bytes bigint,
  out oldest timestamptz, out floor_epoch integer, out floor_xid xid8, out models integer, out deltas_by_model jsonb,
  out commits bigint, out commits_bytes bigint, out held bigint, out maintained_at timestamptz)
returns setof record
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  l record;
begin
  if not concord_internal.is_service() then
    return;
  end if;
  deltas := 0;
  log_bytes := 0;
  index_bytes := 0;
  leaves := 0;
  for l in select f.* from concord_internal.leaves() f loop
    deltas := deltas + concord_internal.rows_about(l.leaf);
    log_bytes := log_bytes + pg_table_size(l.leaf);
    index_bytes := index_bytes + pg_indexes_size(l.leaf);
    leaves := leaves + 1;
    if l.epoch is null then
      default_bytes := pg_total_relation_size(l.leaf);
    end if;
  end loop;
  oldest := concord_internal.oldest_delta();
  floor_epoch := coalesce((select f.epoch from concord_internal.log_floor f), 0);
  floor_xid := coalesce((select f.xid from concord_internal.log_floor f), '0');
  models := (select count(*) from concord_internal.models);
  deltas_by_model := concord_internal.deltas_by_model();
  commits := concord_internal.rows_about('concord_internal.commits');
  commits_bytes := pg_total_relation_size('concord_internal.commits');
  held := concord_internal.rows_about('concord_internal.held');
  maintained_at := (select u.maintained_at from concord_internal.upkeep u);
  return next;
end
$$;

-- Rows of a table, nearly: as counted since the statistics were last reset, or as vacuum found them.
create function concord_internal.rows_about(rel regclass)
returns bigint
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select greatest(pg_stat_get_live_tuples(rel), (select reltuples::bigint from pg_class where oid = rel), 0)
$$;

create view concord.stats as
  select deltas, log_bytes, index_bytes, leaves, default_bytes, oldest, floor_epoch, floor_xid, models, deltas_by_model,
         commits, commits_bytes, held, maintained_at
    from concord_internal.stats_shown();
comment on view concord.stats is
  'One row on the size of the log; none for a login that this database does not trust to speak for every tenant.
deltas, commits, held: rows, nearly. log_bytes, index_bytes: the log and its indexes. leaves: parts of the log, the default
among them; default_bytes: what no leaf was ready for. oldest: when the oldest delta was logged, nearly. floor_epoch,
floor_xid: tokens that may have missed something before this are token_expired. deltas_by_model: estimates from ANALYZE, as
an object from name (tenant/name) to number. maintained_at: when concord.maintain() last ran; null if never.';

select concord_internal.open_to('concord_internal.deltas_by_model()');
select concord_internal.open_to('concord_internal.rows_about(regclass)');
select concord_internal.open_to('concord_internal.stats_shown()', 'public');
select concord_internal.open_view_to('concord.stats', 'public');
