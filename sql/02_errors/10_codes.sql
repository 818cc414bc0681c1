-- The one table of errors. SQL raises from it, pyconcord/errors.py mirrors it, docs/errors.md is generated from it.
-- `contended` is not here: it is Postgres's own 40P01, 40001 and 55P03, which pass through unchanged.
create function concord_internal.error_codes(
  out code text, out sqlstate text, out retryable boolean, out message text)
returns setof record
language sql
immutable
begin atomic
  values
    ('stale_context', 'KC001', false, 'what this write rests on has changed since it was read: read again, or resolve with the values in DETAIL'),
    ('precondition_failed', 'KC002', false, 'the row does not match "where": read it again and decide anew'),
    ('already_exists', 'KC003', false, 'a row with this id is there already: update it, or choose another id'),
    ('not_found', 'KC004', false, 'no such row, or none that you may see'),
    ('token_expired', 'KC005', false, 'the log no longer reaches back to this token: read again'),
    ('token_foreign', 'KC006', false, 'this token was taken from another server, or before a crash or restore: read again'),
    ('token_invalid', 'KC007', false, 'this is not a token, or it was altered or cut: pass it exactly as it was given'),
    ('model_unknown', 'KC008', false, 'no tracked table goes by this name: concord.track() makes one a model'),
    ('model_changed', 'KC009', false, 'the token does not know the model as it is now: read again; if it stays, concord.verify() names the table and concord.refresh() mends it'),
    ('idempotency_in_progress', 'KC010', true, 'another transaction is committing under this idempotency key: try again when it has finished'),
    ('idempotency_mismatch', 'KC011', false, 'this idempotency key was used for another request: choose a new key'),
    ('invalid_request', 'KC012', false, 'the request is not well formed: see "param"'),
    ('unauthenticated', 'KC013', false, 'nobody is acting: call concord.act_as() or concord.authenticate() first, in the same transaction. With autocommit each statement is a transaction of its own, and what they set is gone after it'),
    ('forbidden', 'KC014', false, 'the acting principal, or the role that calls, may not do this'),
    ('lease_lost', 'KC015', false, 'the lease ran out, or went to another: what was done under it is not recorded; resume tells what is left to do');
end;
comment on function concord_internal.error_codes() is
  'Every error code with its SQLSTATE, whether the same call can succeed when repeated, and what to do.';

-- A refusal is a value until somebody raises it: try_commit returns it, commit raises it.
create function concord_internal.refusal(code text, param text default null, message text default null,
                                         extra jsonb default null)
returns jsonb
language sql
stable
begin atomic
  select jsonb_strip_nulls(jsonb_build_object(
           'code', e.code, 'retryable', e.retryable, 'message', coalesce(refusal.message, e.message), 'param', refusal.param))
         || coalesce(refusal.extra, '{}')
    from concord_internal.error_codes() e
   where e.code = refusal.code;
end;

create function concord_internal.raise_refusal(refusal jsonb)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  state text;
begin
  select e.sqlstate into strict state from concord_internal.error_codes() e where e.code = refusal->>'code';
  raise exception using
    errcode = state,
    message = (refusal->>'code') || coalesce(' at ' || (refusal->>'param'), '') || ': ' || (refusal->>'message'),
    detail = (refusal - 'message')::text;
end
$$;

create function concord_internal.fail(code text, param text default null, message text default null,
                                      extra jsonb default null)
returns void
language plpgsql
as $$
begin
  perform concord_internal.raise_refusal(concord_internal.refusal(code, param, message, extra));
end
$$;

select concord_internal.open_to('concord_internal.error_codes()', 'public');
select concord_internal.open_to('concord_internal.refusal(text,text,text,jsonb)', 'public');
select concord_internal.open_to('concord_internal.raise_refusal(jsonb)', 'public');
select concord_internal.open_to('concord_internal.fail(text,text,text,jsonb)', 'public');
