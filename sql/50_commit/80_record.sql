-- 6 record: the commit's own row. Written by definers, for the calling principal and its transaction alone.

create function concord_internal.idempotency_lock(who concord.principal, key text)
returns bigint
language sql
immutable
return hashtextextended(key, hashtextextended((who).id, hashtextextended((who).kind, hashtextextended((who).tenant, -3))));

-- The first receipt under this key; a refusal; or null when the key is free (and ours until the transaction ends).
create function concord_internal.replay(key text, digest bytea)
returns jsonb
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  c concord_internal.commits;
begin
  if not pg_try_advisory_xact_lock(concord_internal.idempotency_lock(who, key)) then
    return concord_internal.refusal('idempotency_in_progress', 'idempotencyKey');
  end if;
  select * into c from concord_internal.commits o
   where o.tenant = who.tenant and o.kind = who.kind and o.actor = who.id and o.idempotency_key = replay.key;
  if c.id is null or c.receipt is null then
    return null;
  elsif c.digest <> replay.digest then
    return concord_internal.refusal('idempotency_mismatch', 'idempotencyKey');
  end if;
  return c.receipt || '{"replayed": true}';
end
$$;

create function concord_internal.open_commit(named bigint[], label text)
returns uuid
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  c uuid := gen_random_uuid();
begin
  if who.id is null then
    perform concord_internal.fail('unauthenticated');
  end if;
  insert into concord_internal.commits (id, xid, first_seq, depth, rows, epoch, tenant, kind, actor, on_behalf_of, label)
  values (c, pg_current_xact_id(), concord_internal.last_delta_seq(), pg_trigger_depth() + 1, coalesce(named, '{}'),
          concord_internal.epoch(), who.tenant, who.kind, who.id, who.on_behalf_of, open_commit.label);
  return c;
end
$$;

-- created: rows whose ids came from defaults, as models and keys; believed where this transaction's log shows them.
create function concord_internal.close_commit(commit_id uuid, created_models integer[], created_keys text[],
                                              idempotency_key text, digest bytea, receipt jsonb, held jsonb)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  me constant xid8 := pg_current_xact_id();
  c concord_internal.commits;
  h record;
begin
  -- Only the commit that this transaction opened last, and only once.
  select * into c from concord_internal.commits o
   where o.xid = me and o.epoch = concord_internal.epoch() and o.last_seq is null and o.id = close_commit.commit_id;
  if c.id is null then
    perform concord_internal.fail('forbidden', null, 'no such commit is open in this transaction');
  end if;
  update concord_internal.commits o
     set last_seq = concord_internal.last_delta_seq(),
         rows = c.rows || array(
           select concord_internal.row_lock(u.model, u.key) from unnest(created_models, created_keys) u(model, key)
            where exists (select from concord_internal.deltas d
                           where hashtextextended(d.key, d.model::bigint) = hashtextextended(u.key, u.model::bigint)
                             and d.key is not null and d.key = u.key and d.model = u.model and d.epoch = c.epoch and d.xid = me
                             and d.op = 'c' and d.depth = c.depth and d.seq > c.first_seq)),
         idempotency_key = close_commit.idempotency_key, digest = close_commit.digest,
         receipt = case when close_commit.idempotency_key is not null then close_commit.receipt end
   where o.xid = me and o.id = c.id;
  for h in select * from jsonb_to_recordset(held) x(model integer, id text, fields text[], seq bigint) loop
    insert into concord_internal.held (commit_id, at, tenant, model, key, fields, kind, actor, by_kind, by_actor)
    select c.id, clock_timestamp(), who.tenant, h.model, h.id, h.fields, who.kind, who.id,
           concord_internal.kind_name(d.kind), d.actor
      from (select 1) one
      left join lateral (
        select x.kind, x.actor from concord_internal.deltas x
         where hashtextextended(x.key, x.model::bigint) = hashtextextended(h.id, h.model::bigint)
           and x.key is not null and x.key = h.id and x.model = h.model and x.seq = h.seq) d on true;
  end loop;
end
$$;

select concord_internal.open_to('concord_internal.idempotency_lock(concord.principal,text)', 'concord_app');
select concord_internal.open_to('concord_internal.replay(text,bytea)', 'concord_app');
select concord_internal.open_to('concord_internal.open_commit(bigint[],text)', 'concord_app');
select concord_internal.open_to('concord_internal.close_commit(uuid,integer[],text[],text,bytea,jsonb,jsonb)', 'concord_app');
