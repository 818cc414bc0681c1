-- pack: agent_message
-- version: 1
-- protect: {"tenant_column": "tenant_id", "owner_column": "user_id", "delegated": true}
-- track: {"tenant_column": "tenant_id", "detail": "names", "groups": ["agent_session:{session_id}"]}
--
-- The transcripts of agents' sessions: numbered from 1 without a gap (less what was pruned from the start). Part of a store with
-- agent_session and agent_tool_call.
--
-- Whose a message is, is copied from its session, and a foreign key over session, tenant and user holds the copies equal,
-- whoever writes. None of them is null, since such a key is not checked then.
create table :"table" (
  id bigint generated always as identity primary key,
  session_id text not null,
  seq bigint not null,
  role text not null check (role in ('system', 'user', 'assistant', 'tool')),
  content text,
  tool_call_id text,
  tool_name text,
  tool_calls jsonb check (jsonb_typeof(tool_calls) = 'array'),
  client_message_id text,
  user_id text not null,
  tenant_id text not null,
  created_at timestamptz not null default clock_timestamp(),
  unique (session_id, seq),
  unique (session_id, client_message_id),
  foreign key (session_id, tenant_id, user_id) references :"schema".:"agent_session" (id, tenant_id, user_id) on delete cascade
);

create or replace function :"schema".:"agent_message_json"(m :"table")
returns jsonb
language sql
stable
return jsonb_build_object('id', m.id, 'seq', m.seq, 'role', m.role, 'content', m.content, 'toolCallId', m.tool_call_id, 'toolName', m.tool_name,
                          'toolCalls', m.tool_calls, 'clientMessageId', m.client_message_id, 'createdAt', m.created_at);

-- What is wrong with a message, as param and text; null: nothing.
create or replace function :"schema".:"agent_message_problem"(m jsonb)
returns text[]
language sql
immutable
as $$
  select case
    when jsonb_typeof(m) is distinct from 'object' then array['', 'a message is an object']
    when m - array['role', 'content', 'toolCallId', 'toolName', 'toolCalls', 'clientMessageId'] <> '{}'
      then array['.' || (select min(k) from jsonb_object_keys(m - array['role', 'content', 'toolCallId', 'toolName', 'toolCalls', 'clientMessageId']) k), 'a message has no such key']
    when (m->>'role' in ('system', 'user', 'assistant', 'tool')) is not true then array['.role', 'system, user, assistant or tool']
    when jsonb_typeof(m->'content') not in ('string', 'null') then array['.content', 'a text, or null']
    when jsonb_typeof(m->'clientMessageId') not in ('string', 'null') or m->>'clientMessageId' = '' then array['.clientMessageId', 'a text']
    when jsonb_typeof(m->'toolCallId') not in ('string', 'null') or (m->>'role' = 'tool') <> (m->>'toolCallId' is not null)
      then array['.toolCallId', 'a tool''s message, and no other, names the call that it is the result of']
    when jsonb_typeof(m->'toolName') not in ('string', 'null') then array['.toolName', 'a text, or null']
    when jsonb_typeof(m->'toolCalls') not in ('array', 'null') or (m->>'role' <> 'assistant' and m->>'toolCalls' is not null)
      then array['.toolCalls', 'a list, of an assistant''s message']
    when jsonb_typeof(m->'toolCalls') = 'array' then (
      select array[format('.toolCalls[%s].id', c.n - 1), 'each call is an object with an id of its own in the session']
        from jsonb_array_elements(m->'toolCalls') with ordinality c(e, n)
       where jsonb_typeof(c.e) <> 'object' or jsonb_typeof(c.e->'id') is distinct from 'string' or c.e->>'id' = ''
       order by c.n limit 1)
  end
$$;

create or replace function :"schema".:"agent_append"(session_id text, messages jsonb, tool_call_id text default null, attempt integer default null)
returns jsonb
language plpgsql
as $$
declare
  s constant :"schema".:"agent_session" := :"schema".:"agent_locked"(session_id);
  next bigint := s.next_seq;
  done jsonb := '[]';
  m jsonb;
  n integer := 0;
  problem text[];
  was :"table";
  made bigint;
begin
  if jsonb_typeof(messages) is distinct from 'array' or jsonb_array_length(messages) not between 1 and 1000 then
    perform concord_internal.fail('invalid_request', 'messages', 'a list of 1 to 1,000 messages');
  end if;
  -- Who works under a lease says so, and writes nothing when it went to another, or ran out.
  if tool_call_id is not null and not exists (
       select from :"schema".:"agent_tool_call" c
        where c.session_id = s.id and c.tool_call_id = agent_append.tool_call_id and c.attempt = agent_append.attempt
          and (c.status = 'done' or c.status = 'started' and c.expires_at > clock_timestamp())) then
    perform concord_internal.fail('lease_lost', 'attempt');
  end if;
  for m in select e from jsonb_array_elements(messages) e loop
    problem := :"schema".:"agent_message_problem"(m);
    if problem is not null then
      perform concord_internal.fail('invalid_request', format('messages[%s]%s', n, problem[1]), problem[2]);
    end if;
    was := null;
    if m->>'clientMessageId' is not null then
      select x.* into was from :"table" x where x.session_id = s.id and x.client_message_id = m->>'clientMessageId';
    end if;
    if was.id is not null then
      if (was.role, was.content, was.tool_call_id, was.tool_name, coalesce(was.tool_calls, 'null'))
         is distinct from (m->>'role', m->>'content', m->>'toolCallId', m->>'toolName', coalesce(m->'toolCalls', 'null')) then
        perform concord_internal.fail('idempotency_mismatch', format('messages[%s].clientMessageId', n));
      end if;
      done := done || jsonb_build_object('id', was.id, 'seq', was.seq, 'replayed', true);
    else
      if m->>'role' = 'tool' then
        -- A result that is brought by hand, of a call that nobody began. Any other comes by agent_finish.
        update :"schema".:"agent_tool_call" c
           set status = 'done', result = to_jsonb(m->>'content'), result_seq = next, updated_at = clock_timestamp()
         where c.session_id = s.id and c.tool_call_id = m->>'toolCallId' and c.status = 'pending';
        if not found then
          perform concord_internal.fail('invalid_request', format('messages[%s].toolCallId', n), 'the session has no such call that waits for a result: agent_finish records those that were begun');
        end if;
      end if;
      insert into :"table" (session_id, seq, role, content, tool_call_id, tool_name, tool_calls, client_message_id, user_id, tenant_id)
      values (s.id, next, m->>'role', m->>'content', m->>'toolCallId', m->>'toolName', nullif(m->'toolCalls', 'null'), m->>'clientMessageId', s.user_id, s.tenant_id)
      returning id into made;
      if m->>'toolCalls' is not null then
        insert into :"schema".:"agent_tool_call" (session_id, tool_call_id, tool_name, call, message_seq, safe_to_retry, user_id, tenant_id)
        select s.id, c->>'id', coalesce(c->>'name', c #>> '{function,name}'), c, next, coalesce(c->'safeToRetry' = 'true', false), s.user_id, s.tenant_id
          from jsonb_array_elements(m->'toolCalls') c
            on conflict do nothing;
        get diagnostics made = row_count;
        if made < jsonb_array_length(m->'toolCalls') then
          perform concord_internal.fail('invalid_request', format('messages[%s].toolCalls', n), 'each call is an object with an id of its own in the session');
        end if;
        select x.id into made from :"table" x where x.session_id = s.id and x.seq = next;
      end if;
      done := done || jsonb_build_object('id', made, 'seq', next, 'replayed', false);
      next := next + 1;
    end if;
    n := n + 1;
  end loop;
  if next > s.next_seq then
    update :"schema".:"agent_session" x set next_seq = next, updated_at = greatest(clock_timestamp(), x.updated_at) where x.id = s.id;
  end if;
  return done;
end
$$;
comment on function :"schema".:"agent_append"(text, jsonb, text, integer) is
  'Adds messages to a session''s transcript, all or none: each {"role": system, user, assistant or tool, "content": text or null,
"toolCalls": [{"id", "name", "safeToRetry": true for one that may run twice, …}] of an assistant, "toolCallId" and "toolName"
of a tool, "clientMessageId"}. Returns for each {"id", "seq", "replayed"}. One with a clientMessageId that the session has
already writes nothing, and is answered as the first was; the same id with another content is idempotency_mismatch. Calls in
toolCalls are pending from then on. tool_call_id and attempt: the lease under which the writer works; when it is not the
call''s any more, lease_lost. Errors: not_found (missing, or somebody else''s), invalid_request (param: the path),
idempotency_mismatch, lease_lost, unauthenticated.';

create or replace function :"schema".:"agent_messages"(session_id text, max integer default 50, before_seq bigint default null)
returns jsonb
language plpgsql
stable
as $$
begin
  if (concord.principal()).id is null then
    perform concord_internal.fail('unauthenticated');
  elsif max is null or max < 1 or max > 1000 then
    perform concord_internal.fail('invalid_request', 'max', 'from 1 to 1,000');
  elsif not exists (select from :"schema".:"agent_session" s where s.id = session_id) then
    perform concord_internal.fail('not_found', 'sessionId', null, jsonb_build_object('id', session_id));
  end if;
  return (select coalesce(jsonb_agg(:"schema".:"agent_message_json"(m) order by m.seq desc), '[]')
            from (select x.* from :"table" x
                   where x.session_id = agent_messages.session_id and x.seq < coalesce(before_seq, 9223372036854775807)
                   order by x.seq desc limit max) m);
end
$$;
comment on function :"schema".:"agent_messages"(text, integer, bigint) is
  'A page of a session''s transcript, newest first: at most max (1 to 1,000) messages before before_seq, each {"id", "seq",
"role", "content", "toolCallId", "toolName", "toolCalls", "clientMessageId", "createdAt"}. Errors: not_found (missing, or
somebody else''s), invalid_request, unauthenticated.';

create or replace function :"schema".:"agent_prune"(session_id text, keep integer)
returns bigint
language plpgsql
as $$
declare
  s constant :"schema".:"agent_session" := :"schema".:"agent_locked"(session_id);
  cut bigint;
  lower bigint;
  pruned bigint;
begin
  if keep is null or keep < 0 then
    perform concord_internal.fail('invalid_request', 'keep', 'a number of messages, from 0 on');
  end if;
  cut := s.next_seq - keep;
  loop
    -- A call before the cut whose result comes after it, or is yet to come: the cut moves before the call.
    select min(c.message_seq) into lower from :"schema".:"agent_tool_call" c
     where c.session_id = s.id and c.message_seq < cut and (c.result_seq is null or c.result_seq >= cut);
    exit when lower is null;
    cut := lower;
  end loop;
  delete from :"schema".:"agent_tool_call" c where c.session_id = s.id and c.message_seq < cut;
  delete from :"table" m where m.session_id = s.id and m.seq < cut;
  get diagnostics pruned = row_count;
  return pruned;
end
$$;
comment on function :"schema".:"agent_prune"(text, integer) is
  'Deletes the oldest messages of a session, and returns how many: at least keep stay, and more where the cut would part a
tool''s call from its result, or take a call that has none yet. Errors: not_found (missing, or somebody else''s),
invalid_request, unauthenticated.';
