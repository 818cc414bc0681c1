-- pack: agent_session
-- version: 1
-- protect: {"tenant_column": "tenant_id", "owner_column": "user_id", "delegated": true}
-- track: {"tenant_column": "tenant_id", "ignore_fields": ["next_seq", "updated_at"]}
--
-- The sessions of agents: whose, what the agent keeps in mind (state), and the counter of the transcript. Part of a store with
-- agent_message and agent_tool_call.
--
-- Whose a session is comes from who acts, never from an argument: the wall stamps it, and refuses to change it. An agent that acts
-- on behalf of a user works on that user's sessions. A session without an owner is seen by nobody.
--
-- next_seq is what makes transcripts gapless: whoever adds to one holds this row's lock from drawing a number to the end of the
-- transaction, so numbers are given in the order of commits, and one that is rolled back was never given.
create table :"table" (
  id text primary key default gen_random_uuid()::text,
  agent_name text not null check (agent_name <> ''),
  user_id text,
  tenant_id text,
  state jsonb not null default '{}',
  next_seq bigint not null default 1,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (id, tenant_id, user_id)
);
create index on :"table" (agent_name);
create index on :"table" (tenant_id, user_id, updated_at desc, id);

-- Locked, and as it is then: the first thing that every writing verb does, so that they take turns on a session. One that is not
-- there and one of somebody else's are told alike.
create or replace function :"schema".:"agent_locked"(session_id text)
returns :"table"
language plpgsql
as $$
declare
  found_one :"table";
begin
  if (concord.principal()).id is null then
    perform concord_internal.fail('unauthenticated');
  end if;
  select s.* into found_one from :"table" s where s.id = session_id for no key update;
  if found_one.id is null then
    perform concord_internal.fail('not_found', 'sessionId', null, jsonb_build_object('id', session_id));
  end if;
  return found_one;
end
$$;

create or replace function :"schema".:"agent_save"(
  id text default null, state jsonb default null, agent_name text default null, read_at text default null, on_stale text default null)
returns jsonb
language plpgsql
as $$
declare
  who constant concord.principal := concord.principal();
  model constant text := (select m.name from concord.models m where m.rel = ':"table"'::regclass);
  data constant jsonb := case when state is null then '{}' else jsonb_build_object('state', state) end
                         || case when agent_name is null then '{}' else jsonb_build_object('agent_name', agent_name) end;
  receipt jsonb;
begin
  if data = '{}' then
    perform concord_internal.fail('invalid_request', 'state', 'what to save: a state, or an agent''s name');
  end if;
  receipt := concord.commit(jsonb_build_object('operations', jsonb_build_array(
    -- The wall stamps the same; a superuser, whom it does not bind, would make a session of nobody's else.
    case when id is null then jsonb_build_object('type', 'create', 'model', model,
           'data', data || jsonb_build_object('tenant_id', who.tenant, 'user_id', concord_internal.owner_of(who, true)))
         else jsonb_build_object('type', 'update', 'model', model, 'id', id, 'data', data || jsonb_build_object('updated_at', clock_timestamp())) end))
    || case when read_at is null or id is null then '{}' else jsonb_build_object('readAt', read_at) end
    || case when on_stale is null then '{}' else jsonb_build_object('onStale', on_stale) end);
  return jsonb_build_object('id', coalesce(receipt #>> '{operations,0,id}', id), 'readAt', receipt->'readAt', 'held', receipt->'notifications');
end
$$;
comment on function :"schema".:"agent_save"(text, jsonb, text, text, text) is
  'Saves what an agent keeps in mind, by concord.commit. id null: a new session of who acts, under an id that the database makes.
read_at: the token it was loaded under; if its state was saved by somebody else since, on_stale says what to do, as in
concord.commit. Returns {"id", "readAt": the token for the next save (null: nothing was applied), "held": what notify did not
write}. Whose a session is never changes. Errors: not_found (missing, or somebody else''s), stale_context, token_*,
invalid_request, unauthenticated.';

create or replace function :"schema".:"agent_load"(id text, messages boolean default true)
returns jsonb
language plpgsql
stable
as $$
declare
  row_read jsonb;
begin
  if (concord.principal()).id is null then
    perform concord_internal.fail('unauthenticated');
  end if;
  row_read := concord.read((select m.name from concord.models m where m.rel = ':"table"'::regclass), id);
  if row_read->'data' = 'null' then
    perform concord_internal.fail('not_found', 'sessionId', null, jsonb_build_object('id', id));
  end if;
  return jsonb_build_object('session', row_read->'data', 'readAt', row_read->'readAt')
         || case when messages then jsonb_build_object('messages', (
              select coalesce(jsonb_agg(:"schema".:"agent_message_json"(m) order by m.seq), '[]')
                from :"schema".:"agent_message" m where m.session_id = agent_load.id)) else '{}' end;
end
$$;
comment on function :"schema".:"agent_load"(text, boolean) is
  'A session with its transcript, oldest message first: {"session": its columns, "readAt": token for agent_save, "messages": as
in agent_messages}. Errors: not_found (missing, or somebody else''s), unauthenticated.';

create or replace function :"schema".:"agent_list"(agent_name text default null, max integer default 50, after jsonb default null)
returns jsonb
language plpgsql
stable
as $$
declare
  page jsonb;
  before timestamptz;
begin
  if (concord.principal()).id is null then
    perform concord_internal.fail('unauthenticated');
  elsif max is null or max < 1 or max > 1000 then
    perform concord_internal.fail('invalid_request', 'max', 'from 1 to 1,000');
  elsif after is not null and (jsonb_typeof(after->'updatedAt') = 'string' and jsonb_typeof(after->'id') = 'string') is not true then
    perform concord_internal.fail('invalid_request', 'after', 'what the page before said is next');
  end if;
  begin
    before := after->>'updatedAt';
  exception when data_exception then
    perform concord_internal.fail('invalid_request', 'after', 'what the page before said is next');
  end;
  -- The index's own order; the policies add whose.
  select coalesce(jsonb_agg(jsonb_build_object('id', s.id, 'agentName', s.agent_name, 'state', s.state, 'createdAt', s.created_at, 'updatedAt', s.updated_at)
                            order by s.updated_at desc, s.id), '[]')
    into page
    from (select x.* from :"table" x
           where (agent_list.agent_name is null or x.agent_name = agent_list.agent_name)
             and (after is null or (x.updated_at <= before and (x.updated_at < before or x.id > after->>'id')))
           order by x.updated_at desc, x.id limit max) s;
  return jsonb_build_object('sessions', page, 'next', case when jsonb_array_length(page) = max
           then jsonb_build_object('updatedAt', page->-1->'updatedAt', 'id', page->-1->'id') end);
end
$$;
comment on function :"schema".:"agent_list"(text, integer, jsonb) is
  'The sessions of who acts, last changed first, a page of max (1 to 1,000) at a time: {"sessions": [{"id", "agentName", "state",
"createdAt", "updatedAt"}], "next": what to pass as after for the next page, or null}. Errors: invalid_request,
unauthenticated.';

create or replace function :"schema".:"agent_delete"(id text, read_at text default null)
returns jsonb
language plpgsql
as $$
begin
  return concord.commit(jsonb_build_object('operations', jsonb_build_array(jsonb_build_object(
      'type', 'delete', 'model', (select m.name from concord.models m where m.rel = ':"table"'::regclass), 'id', id)))
    || case when read_at is null then '{}' else jsonb_build_object('readAt', read_at) end);
end
$$;
comment on function :"schema".:"agent_delete"(text, text) is
  'Deletes a session with its transcript, by concord.commit; returns the receipt. Errors: not_found (missing, or somebody
else''s), stale_context, token_*, unauthenticated.';
