-- What an administrator may choose. The known keys stand here, with their defaults, so that an upgrade can add one; the
-- table holds only what differs, so that a dump carries what somebody chose and nothing else.
create table concord_internal.settings (
  key text collate "C" primary key,
  value text not null
);

create function concord_internal.known_settings(out key text, out "default" text, out description text)
returns setof record
language sql
immutable
begin atomic
  values
    ('idempotency_retention', '24 hours',
     'How long a receipt is kept for its idempotency key. Older ones are blanked by concord.maintain(), and their keys are free again.'),
    ('leaf_count', '8',
     'Into how many leaves the retained log is divided (2 to 11). The log is cut leaf by leaf, so a delta may outlive retention by about one such part.'),
    ('lock_timeout', '5 s',
     'How long one wait for a lock may last inside a commit, and in track, untrack, pause, resume and refresh; then it is contended (55P03). An amount of ms, s or min.'),
    ('maintain_lock_timeout', '100 ms',
     'How long concord.maintain() waits for each lock, and so the longest that it makes others wait behind it. What it does not get it puts off.'),
    ('notify', 'off',
     'on: a transaction that changes a tracked table notifies the channel "concord" once, with its id and never a value. A notifying commit takes a lock that all databases of the server share.'),
    ('retention', '30 days',
     'How long the log is kept, at least. A token or a feed position that is older becomes token_expired.');
end;

create function concord_internal.setting(key text)
returns text
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((select s.value from concord_internal.settings s where s.key = setting.key),
                  (select k."default" from concord_internal.known_settings() k where k.key = setting.key));
end
$$;
comment on function concord_internal.setting(text) is
  'The value in force of a setting; null for a name that is none.';

-- Open to everyone: no setting is a secret, and whoever meets a limit should be able to see it.
create function concord_internal.settings_shown(out key text, out value text, out "default" text, out description text)
returns setof record
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select k.key, coalesce(s.value, k."default"), k."default", k.description
    from concord_internal.known_settings() k
    left join concord_internal.settings s on s.key = k.key
   order by k.key
$$;

create view concord.settings as
  select key, value, "default", description from concord_internal.settings_shown();
comment on view concord.settings is
  'What concord.configure() can change: each key with the value in force, its default, and what it means.';

select concord_internal.open_to('concord_internal.known_settings()');
select concord_internal.open_to('concord_internal.setting(text)', 'public');
select concord_internal.open_to('concord_internal.settings_shown()', 'public');
select concord_internal.open_view_to('concord.settings', 'public');
