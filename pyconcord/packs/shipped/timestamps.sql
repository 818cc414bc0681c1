-- pack: timestamps
-- version: 1
-- track: {"ignore_fields": ["updated_at"]}
--
-- When a row was made, and when anything in it last changed, whoever changed it. Rows from before the pack have the moment
-- it came, unless they are filled. updated_at never conflicts: any two writes would.
create table :"table" (
  :"created_at" timestamptz not null default now(),
  :"updated_at" timestamptz not null default now()
);
create or replace function :"schema".:"table_touch"()
returns trigger
language plpgsql
as $$
declare
  generated text[];
begin
  -- By image: a type need not have an equality operator. Generated columns have no values in a BEFORE trigger yet, and
  -- follow from the others.
  if old *<> new then
    generated := array(select attname::text from pg_catalog.pg_attribute where attrelid = tg_relid and attnum > 0 and attgenerated <> '');
    if generated = '{}' or (to_jsonb(old) - generated) is distinct from (to_jsonb(new) - generated) then
      new.:"updated_at" := now();
    end if;
  end if;
  return new;
end
$$;
create trigger :"table_touch" before update on :"table" for each row execute function :"schema".:"table_touch"();
