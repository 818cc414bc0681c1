-- 6 record: the commit's own row. Written by definers, for the calling principal and its transaction alone.

create function concord_internal.idempotency_lock(who concord.principal, key text)
returns bigint
language sql
immutable
return hashtextextended(key, hashtextextended((who).id, hashtextextended((who).kind, hashtextextended((who).tenant, -3))));

create function concord_internal.request_digest(given jsonb)
returns bytea
language sql
immutable
return sha256(convert_to(given::text, 'UTF8'));

-- The first receipt under this key; a refusal; or null when the key is free (and ours until the transaction ends).
create function concord_internal.replay(key text, given jsonb)
returns jsonb
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  c concord_internal.commits;
begin
  if who.id is null then
    return concord_internal.refusal('unauthenticated');
  elsif key is null or given is null then
    return concord_internal.refusal('invalid_request', case when key is null then 'idempotencyKey' end);
  elsif not pg_try_advisory_xact_lock(concord_internal.idempotency_lock(who, key)) then
    return concord_internal.refusal('idempotency_in_progress', 'idempotencyKey');
  end if;
  select * into c from concord_internal.commits o
   where concord_internal.idempotency_digest(o.tenant, o.kind, o.actor, o.idempotency_key)
         = concord_internal.idempotency_digest(who.tenant, who.kind, who.id, replay.key)
     and o.tenant = who.tenant and o.kind = who.kind and o.actor = who.id and o.idempotency_key = replay.key;
  if c.id is null or c.receipt is null then
    return null;
  elsif c.digest is distinct from concord_internal.request_digest(given) then
    return concord_internal.refusal('idempotency_mismatch', 'idempotencyKey');
  end if;
  return concord_internal.told_receipt(c.receipt) || '{"replayed": true}';
end
$$;

-- Written last, as the calling principal. A raw write must not pass for a commit, and this can be called by any role that
-- commits; so it looks who calls: the second line of its call stack has to be run_whole or run_plain. They call it from a
-- plain assignment, so that no text of a statement, which a caller could choose, stands between; a function of that
-- qualified name can't be made by a role that may not create in this schema, and odd names appear quoted. The words before
-- the name are those of the first line, whatever the language of messages.
create function concord_internal.record_commit(commit_id uuid, first_seq bigint, last_seq bigint, label text,
  idempotency_key text, given jsonb, receipt jsonb, held jsonb, models concord_internal.models[] default null)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  who constant concord.principal := concord.principal();
  stack text;
  words text;
  digest bytea;
  kept jsonb;
  about bigint[];
begin
  get diagnostics stack = pg_context;
  stack := concord_internal.bare_stack(stack);
  words := split_part(split_part(stack, E'\n', 1), 'concord_internal.record_commit(', 1);
  if words = '' or not (starts_with(split_part(stack, E'\n', 2), words || 'concord_internal.run_whole(')
                        or starts_with(split_part(stack, E'\n', 2), words || 'concord_internal.run_plain(')) then
    perform concord_internal.fail('forbidden', null,
      'only concord.commit records a commit (with concord_internal in search_path it can''t be told: take it out)');
  end if;
  if who.id is null then
    perform concord_internal.fail('unauthenticated');
  end if;
  last_seq := coalesce(last_seq, concord_internal.last_delta_seq());
  if idempotency_key is not null then
    digest := concord_internal.request_digest(given);
    kept := concord_internal.kept_receipt(receipt, given, models);
    about := (select array_agg(distinct hashtextextended(e->>'id', (e->>'m')::bigint))
                from jsonb_array_elements((kept->'operations') || (kept->'notifications')) e
               where e ? 'm' and e ?| array['data', 'currentValues']);
  end if;
  insert into concord_internal.commits (id, xid, first_seq, last_seq, epoch, tenant, kind, actor, on_behalf_of, label,
                                        idempotency_key, digest, receipt, about)
  values (commit_id, pg_current_xact_id(), first_seq, last_seq, concord_internal.epoch(), who.tenant, who.kind, who.id,
          who.on_behalf_of, label, idempotency_key, digest, kept, about);
  if held is not null then
    insert into concord_internal.held (commit_id, at, tenant, model, key, fields, kind, actor, by_kind, by_actor)
    select record_commit.commit_id, clock_timestamp(), who.tenant, h.model, h.id, h.fields, who.kind, who.id,
           concord_internal.kind_name(d.kind), d.actor
      from jsonb_to_recordset(held) h(model integer, id text, fields text[], seq bigint)
      join concord_internal.models m on m.id = h.model and m.tenant in ('', who.tenant)
      left join lateral (  -- by whom: from the log, where the caller's tenant may look
        select x.kind, x.actor from concord_internal.deltas x
         where concord_internal.is_of_row(x.model, x.key, h.model, h.id) and x.seq = h.seq and (m.tenant_column is null or x.tenant = who.tenant)) d on true;
  end if;
  return last_seq;
end
$$;

select concord_internal.open_to('concord_internal.idempotency_lock(concord.principal,text)', 'concord_app');
select concord_internal.open_to('concord_internal.replay(text,jsonb)', 'concord_app');
select concord_internal.open_to('concord_internal.request_digest(jsonb)');
select concord_internal.open_to('concord_internal.record_commit(uuid,bigint,bigint,text,text,jsonb,jsonb,jsonb,concord_internal.models[])', 'concord_app');
