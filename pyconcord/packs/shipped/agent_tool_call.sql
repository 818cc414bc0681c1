-- pack: agent_tool_call
-- version: 1
-- protect: {"tenant_column": "tenant_id", "owner_column": "user_id", "delegated": true}
-- track: {"tenant_column": "tenant_id", "detail": "names", "groups": ["agent_session:{session_id}"]}
--
-- The tool calls of agents' sessions, each with the lease under which it runs. Part of a store with agent_session and
-- agent_message.
--
-- What a crash leaves is told apart by what was committed before the tool's effect:
--   pending   nobody began: it can run
--   started   somebody began, and its outcome is not known yet, or never will be
--   done      its result is in the transcript, in the same transaction
--   unknown   it was begun, its lease ran out, and it is not safe to run again; the transcript says so in place of a result
--
-- Why no two workers run one call: begin and resume hold the session's row lock while they look and lease. Why a worker that
-- was away too long writes nothing: its attempt is the fence, and a finish with another, or past the lease, is refused. Time is
-- the server's alone.
-- What breaks it: an effect that goes on after its lease ran out. The lease has to be longer than the tool, or be renewed.
create table :"table" (
  session_id text not null,
  tool_call_id text not null,
  tool_name text,
  call jsonb not null,
  message_seq bigint not null,
  result_seq bigint,
  status text not null default 'pending' check (status in ('pending', 'started', 'done', 'unknown')),
  attempt integer not null default 0,
  holder text,
  expires_at timestamptz,
  safe_to_retry boolean not null default false,
  result jsonb,
  user_id text not null,
  tenant_id text not null,
  created_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp(),
  primary key (session_id, tool_call_id),
  foreign key (session_id, tenant_id, user_id) references :"schema".:"agent_session" (id, tenant_id, user_id) on delete cascade
);
create index on :"table" (session_id, message_seq);

create or replace function :"schema".:"agent_demand_lease"(holder text, lease interval)
returns void
language plpgsql
immutable
as $$
begin
  if holder is null or holder = '' then
    perform concord_internal.fail('invalid_request', 'holder', 'who is to run it: a text that no other worker has');
  elsif (lease > '0' and lease <= '1 year') is not true then
    perform concord_internal.fail('invalid_request', 'lease', 'a time, longer than the tool takes, and up to a year');
  end if;
end
$$;

create or replace function :"schema".:"agent_begin"(session_id text, tool_call_id text, holder text, lease interval default '5 minutes',
  safe_to_retry boolean default null, attempt integer default null)
returns integer
language plpgsql
as $$
declare
  s constant :"schema".:"agent_session" := :"schema".:"agent_locked"(session_id);
  c :"table";
begin
  perform :"schema".:"agent_demand_lease"(holder, lease);
  select x.* into c from :"table" x where x.session_id = s.id and x.tool_call_id = agent_begin.tool_call_id;
  if c.tool_call_id is null then
    perform concord_internal.fail('not_found', 'toolCallId', 'the session has no such call', jsonb_build_object('id', tool_call_id));
  elsif (attempt is null and c.status <> 'pending')
     or (attempt is not null and (c.status = 'started' and c.attempt = attempt and c.holder = holder and c.expires_at > clock_timestamp()) is not true) then
    perform concord_internal.fail('lease_lost', case when attempt is null then 'toolCallId' else 'attempt' end);
  end if;
  update :"table" x
     set status = 'started', holder = agent_begin.holder, expires_at = clock_timestamp() + lease, updated_at = clock_timestamp(),
         attempt = x.attempt + (agent_begin.attempt is null)::integer,
         safe_to_retry = coalesce(agent_begin.safe_to_retry, x.safe_to_retry)
   where x.session_id = s.id and x.tool_call_id = c.tool_call_id
  returning x.attempt into c.attempt;
  return c.attempt;
end
$$;
comment on function :"schema".:"agent_begin"(text, text, text, interval, boolean, integer) is
  'Leases a pending tool call to holder, before its effect: returns the attempt, which agent_finish asks for. lease: how long, by
the server''s clock; the tool has to be done by then. safe_to_retry: it may run again if its outcome stays unknown (null: as
the message said). With the attempt of a lease that lives: renews it. Errors: not_found (no such session or call, or somebody
else''s), lease_lost (it was begun already, or the lease is over), invalid_request, unauthenticated.';

-- The result as a message, and the call as it is from then on. Under the session's lock.
create or replace function :"schema".:"agent_record"(s :"schema".:"agent_session", c :"table", status text, result jsonb, content text)
returns bigint
language plpgsql
as $$
declare
  taken bigint;
begin
  update :"schema".:"agent_session" x set next_seq = x.next_seq + 1, updated_at = greatest(clock_timestamp(), x.updated_at) where x.id = s.id
  returning x.next_seq - 1 into taken;
  insert into :"schema".:"agent_message" (session_id, seq, role, content, tool_call_id, tool_name, user_id, tenant_id)
  values (s.id, taken, 'tool', content, c.tool_call_id, c.tool_name, s.user_id, s.tenant_id);
  update :"table" x
     set status = agent_record.status, result = agent_record.result, result_seq = taken, updated_at = clock_timestamp()
   where x.session_id = s.id and x.tool_call_id = c.tool_call_id;
  return taken;
end
$$;

create or replace function :"schema".:"agent_finish"(session_id text, tool_call_id text, attempt integer, result jsonb)
returns jsonb
language plpgsql
as $$
declare
  s constant :"schema".:"agent_session" := :"schema".:"agent_locked"(session_id);
  c :"table";
begin
  if result is null then
    perform concord_internal.fail('invalid_request', 'result', 'a result; JSON''s null for none');
  end if;
  select x.* into c from :"table" x where x.session_id = s.id and x.tool_call_id = agent_finish.tool_call_id;
  if c.tool_call_id is null then
    perform concord_internal.fail('not_found', 'toolCallId', 'the session has no such call', jsonb_build_object('id', tool_call_id));
  elsif c.status = 'done' and c.attempt = attempt and c.result = result then
    return jsonb_build_object('seq', c.result_seq, 'replayed', true);
  elsif (c.status = 'started' and c.attempt = attempt and c.expires_at > clock_timestamp()) is not true then
    perform concord_internal.fail('lease_lost', 'attempt');
  end if;
  return jsonb_build_object('replayed', false, 'seq', :"schema".:"agent_record"(s, c, 'done', result,
    case when jsonb_typeof(result) = 'string' then result #>> '{}' else result::text end));
end
$$;
comment on function :"schema".:"agent_finish"(text, text, integer, jsonb) is
  'Records a tool''s result, and adds it to the transcript as a message of role tool, in one transaction: {"seq", "replayed"}.
attempt: what agent_begin or agent_resume returned. The same again is answered as the first was. Errors: not_found (no such
session or call, or somebody else''s), lease_lost (the lease ran out, or went to another: the result is not recorded),
invalid_request, unauthenticated.';

create or replace function :"schema".:"agent_resume"(session_id text, holder text, lease interval default '5 minutes')
returns jsonb
language plpgsql
as $$
declare
  s constant :"schema".:"agent_session" := :"schema".:"agent_locked"(session_id);
  c :"table";
  run jsonb := '[]';
  unknown jsonb := '[]';
  running jsonb := '[]';
begin
  perform :"schema".:"agent_demand_lease"(holder, lease);
  for c in select x.* from :"table" x where x.session_id = s.id and x.status in ('pending', 'started') order by x.message_seq, x.tool_call_id loop
    if c.status = 'started' and c.expires_at > clock_timestamp() then
      running := running || jsonb_build_object('toolCallId', c.tool_call_id, 'toolName', c.tool_name, 'holder', c.holder, 'expiresAt', c.expires_at);
    elsif c.status = 'started' and not c.safe_to_retry then
      perform :"schema".:"agent_record"(s, c, 'unknown', null,
        'Outcome unknown: who ran this call stopped before its result was recorded. It may have taken effect, and was not run again.');
      unknown := unknown || jsonb_build_object('toolCallId', c.tool_call_id, 'toolName', c.tool_name);
    else
      update :"table" x
         set status = 'started', attempt = x.attempt + 1, holder = agent_resume.holder, expires_at = clock_timestamp() + lease, updated_at = clock_timestamp()
       where x.session_id = s.id and x.tool_call_id = c.tool_call_id;
      run := run || jsonb_build_object('toolCallId', c.tool_call_id, 'toolName', c.tool_name, 'attempt', c.attempt + 1, 'call', c.call);
    end if;
  end loop;
  return jsonb_build_object('run', run, 'unknown', unknown, 'running', running);
end
$$;
comment on function :"schema".:"agent_resume"(text, text, interval) is
  'What is left of a session''s tool calls after a crash, or a pause: {"run": [{"toolCallId", "toolName", "attempt", "call"}],
leased to holder from now on: those that nobody began, and those whose lease ran out and that are safe to retry; "unknown":
those whose lease ran out and that are not, for which the transcript says now that their outcome is unknown; "running": those
under a lease that lives, left alone}. Two at once never both run a call. Errors: not_found (missing, or somebody else''s),
invalid_request, unauthenticated.';
