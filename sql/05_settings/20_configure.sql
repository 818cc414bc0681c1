-- What is wrong with a value, in words; null when nothing is. A value that could not be used would only show in the
-- middle of somebody's commit, so it is tried here.
create function concord_internal.setting_problem(key text, value text)
returns text
language plpgsql
stable
as $$
declare
  span interval;
begin
  case key
    when 'lock_timeout', 'maintain_lock_timeout' then
      -- In the units of the server's own lock_timeout, to which it is given as it is. Zero would be no limit at all.
      if value !~ '^[0-9]{1,7} ?(ms|s|min)$' then
        return 'an amount with its unit, ms, s or min: 5 s';
      end if;
      span := replace(value, 'min', ' minutes')::interval;
      if span < '1 ms' or span > '1 hour' then
        return 'between 1 ms and 60 min';
      end if;
    when 'retention', 'idempotency_retention' then
      begin
        span := value::interval;
      exception when data_exception then
        return 'a span of time: 30 days';
      end;
      if span < '1 minute' or span > '100 years' then
        return 'between a minute and 100 years';
      end if;
    when 'leaf_count' then
      if value !~ '^[0-9]{1,2}$' or value::integer not between 2 and 11 then
        return 'a number from 2 to 11';
      end if;
    when 'notify' then
      if value not in ('on', 'off') then
        return 'on or off';
      end if;
  end case;
  return null;
end
$$;

create function concord.configure(key text, value text)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  problem text;
begin
  if not concord_internal.is_admin() then
    perform concord_internal.fail('forbidden', null, 'only a superuser or the owner of the database may change a setting');
  end if;
  if not exists (select from concord_internal.known_settings() k where k.key = configure.key) then
    perform concord_internal.fail('invalid_request', 'key', format('there is no setting %s: there are %s',
      coalesce(quote_literal(key), 'null'), (select string_agg(k.key, ', ' order by k.key) from concord_internal.known_settings() k)));
  end if;
  value := btrim(value);
  problem := concord_internal.setting_problem(key, value);
  if problem is not null then
    perform concord_internal.fail('invalid_request', 'value', format('%s: %s', key, problem));
  end if;
  if value is null then
    delete from concord_internal.settings s where s.key = configure.key;
  else
    insert into concord_internal.settings as s values (configure.key, configure.value)
        on conflict on constraint settings_pkey do update set value = excluded.value;
  end if;
  if key = 'notify' then
    perform concord_internal.set_wake_ups(coalesce(value, 'off') = 'on');
  end if;
end
$$;
comment on function concord.configure(text, text) is
  'Sets what concord.settings shows; a null value goes back to the default. Holds for everybody from the next statement
after this transaction has committed. Only a superuser or the owner of the database.
Errors: forbidden, invalid_request (param: key or value).';

select concord_internal.open_to('concord_internal.setting_problem(text,text)');
select concord_internal.open_to('concord.configure(text,text)', 'public');
