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
begin
  -- By image: a type need not have an equality operator. Not in WHEN, where Postgres allows no row with generated columns.
  if old *<> new then
    new.:"updated_at" := now();
  end if;
  return new;
end
$$;
create trigger :"table_touch" before update on :"table" for each row execute function :"schema".:"table_touch"();
