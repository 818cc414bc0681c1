-- The definer's half of protect, as define_model is of track: what is wrong is said here, the row is written here, and the
-- trigger function is made here.

-- The policies' expressions: of the wall, and beside it what each kind of statement may do; null: no more than the wall says.
--   read     predicate; or own rows and shared ones; or own rows; or (writable) all of the tenant
--   others   writable; or predicate; or own rows
-- Own rows alone, the commonest rule, are the wall's tenant and owner in one comparison: who acts is then asked once in a
-- statement, and that is what a policy costs.
create function concord_internal.rules_of(p concord_internal.protections, columns jsonb,
  out wall text, out read text, out "insert" text, out "update" text, out "delete" text)
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  tenant constant text := concord_internal.as_column_type(columns->(p.tenant_column::text)->>'t', '(p).tenant');
  owner constant text := concord_internal.as_column_type(columns->(p.owner_column::text)->>'t', format('concord_internal.owner_of(p, %s)', p.delegated::text));
  acting constant text := '(select concord.principal() offset 0) p(p)';  -- once, and cheaper than a function scan
  own constant text := quote_ident(p.owner_column) || format(' operator(pg_catalog.=) (select %s from %s)', owner, acting);
begin
  if own is not null and p.shared_column is null and p.predicate is null and p.writable is null then
    wall := format('(%I, %I) operator(pg_catalog.=) (select %s, %s from %s)', p.tenant_column, p.owner_column, tenant, owner, acting);
    return;
  end if;
  wall := format('%I operator(pg_catalog.=) (select %s)', p.tenant_column, replace(tenant, '(p).', '(concord.principal()).'));
  read := coalesce(p.predicate, '(' || own || ' or ' || quote_ident(p.shared_column) || ')');
  if p.writable is null then
    "insert" := coalesce(p.predicate, own);
    "update" := "insert";
    "delete" := "insert";
  else
    "insert" := case p.writable->>'insert' when 'none' then 'false' else own end;
    "update" := case p.writable->>'update' when 'any' then coalesce(read, 'true') when 'own' then own else 'false' end;
    "delete" := case p.writable->>'delete' when 'any' then coalesce(read, 'true') when 'own' then own else 'false' end;
  end if;
end
$$;

create function concord_internal.demand_protection(p concord_internal.protections)
returns void
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  class pg_class;
  columns jsonb;
  problem text;
  role record;
  bad text;
begin
  select * into class from pg_class where oid = p.rel;
  problem := case
    when class.relkind not in ('r', 'p') then 'only a table can be protected'
    when class.relpersistence = 't' then 'a temporary table can''t be protected: no other session sees it'
    when class.relispartition then 'this is a partition: protect the partitioned table, whose partitions are protected with it'
    when class.relnamespace in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace,
                                'concord'::regnamespace, 'concord_internal'::regnamespace) then 'a system table can''t be protected'
    when class.relkind = 'r' and exists (select from pg_inherits where inhparent = p.rel or inhrelid = p.rel)
      then 'a table in an inheritance tree can''t be protected: its children have policies of their own'
  end;
  if problem is not null then
    perform concord_internal.fail('invalid_request', 'rel', problem);
  end if;
  columns := concord_internal.columns_of(p.rel);
  for role in
    select * from (values ('tenant_column', p.tenant_column), ('owner_column', p.owner_column),
                          ('shared_column', p.shared_column), ('editor_column', p.editor_column)) r(param, col)
  loop
    problem := case
      when role.col is null then case when role.param = 'tenant_column' then 'the column that says whose a row is' end
      when not columns ? role.col::text then format('no column %I', role.col)
      when columns->(role.col::text) ? 'g' then format('%I is generated: nobody can stamp it', role.col)
      when role.param = 'shared_column' then
        case when columns->(role.col::text)->>'t' <> 'boolean' then format('%I is no boolean', role.col) end
      when role.param = 'editor_column' then
        case when columns->(role.col::text)->>'t' <> 'text' and columns->(role.col::text)->>'t' not like 'character varying%' then format('%I is no text', role.col) end
      when concord_internal.as_column_type(columns->(role.col::text)->>'t', '') is null
        then format('%I is %s: whose a row is, is text, varchar, uuid, or an integer', role.col, columns->(role.col::text)->>'t')
      when exists (select from pg_attribute a join pg_collation c on c.oid = a.attcollation
                    where a.attrelid = p.rel and a.attname = role.col and not c.collisdeterministic)
        then format('%I takes different texts for equal, by its collation', role.col)
    end;
    if problem is not null then
      perform concord_internal.fail('invalid_request', role.param, problem);
    end if;
  end loop;
  select string_agg(c, ', ') into bad
    from (select c from unnest(array[p.tenant_column, p.owner_column, p.shared_column, p.editor_column]) c
           where c is not null group by c having count(*) > 1) d;
  if bad is not null then
    perform concord_internal.fail('invalid_request', 'owner_column', format('%s can''t be two things', bad));
  end if;

  if p.owner_column is null and (p.shared_column is not null or p.delegated) then
    perform concord_internal.fail('invalid_request', case when p.delegated then 'delegated' else 'shared_column' end, 'without owner_column nobody owns a row');
  elsif p.owner_column is null and p.writable is not null then
    perform concord_internal.fail('invalid_request', 'writable', 'without owner_column nobody is the author of a row');
  elsif p.predicate is not null and p.shared_column is not null then
    perform concord_internal.fail('invalid_request', 'predicate', 'say in the predicate what is shared, or give shared_column, not both');
  elsif p.predicate = '' or strpos(p.predicate, ';') > 0 then
    -- Whoever calls protect again, an administrator for one whom the doctor told to, runs no command of the owner's.
    perform concord_internal.fail('invalid_request', 'predicate', 'a condition over the columns, without a semicolon');
  end if;
  if p.writable is not null then
    if jsonb_typeof(p.writable) <> 'object' then
      perform concord_internal.fail('invalid_request', 'writable', 'an object from insert, update, delete to any, own, none');
    end if;
    select format('writable.%s', e.key) into bad from jsonb_each(p.writable) e where e.key not in ('insert', 'update', 'delete') limit 1;
    if found then
      perform concord_internal.fail('invalid_request', bad, 'no such operation: there are insert, update and delete');
    end if;
    select format('writable.%s', e.key) into bad from jsonb_each(p.writable) e
     where e.value not in ('"any"', '"none"') and (e.key = 'insert' or e.value <> '"own"') limit 1;
    if found then
      perform concord_internal.fail('invalid_request', bad, 'one of any, own and none; of insert: any or none');
    end if;
  end if;
  if p.contract is not null then
    perform concord_internal.demand_contract(p, columns);
  end if;
end
$$;

create function concord_internal.define_protection(wanted concord_internal.protections)
returns concord_internal.protections
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  was concord_internal.protections;
  p concord_internal.protections := wanted;
begin
  perform concord_internal.demand_owner(p.rel);
  perform concord_internal.demand_protection(p);
  select * into was from concord_internal.protections o where o.rel = p.rel;
  p.id := coalesce(was.id, nextval(pg_get_serial_sequence('concord_internal.protections', 'id')));
  p.protected_at := coalesce(was.protected_at, now());
  p.made_check := coalesce(was.made_check, false);
  p.groups := concord_internal.groups_of(p.rel);
  insert into concord_internal.protections select p.*
    on conflict (id) do update set
      tenant_column = excluded.tenant_column, owner_column = excluded.owner_column, shared_column = excluded.shared_column,
      predicate = excluded.predicate, writable = excluded.writable, editor_column = excluded.editor_column,
      delegated = excluded.delegated, contract = excluded.contract, groups = excluded.groups;
  perform concord_internal.make_stamp_function(p);
  perform concord_internal.log_owner_of(p.rel);
  return p;
end
$$;

-- The groups of the caller's table, where it is a model.
create function concord_internal.groups_of(rel regclass)
returns text[]
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select coalesce((select m.groups from concord_internal.models m where m.rel = groups_of.rel and concord_internal.owns(groups_of.rel)), '{}')
$$;

-- The log carries the owner of a row: the triggers of its model are made anew.
create function concord_internal.log_owner_of(rel regclass)
returns void
language plpgsql
as $$
declare
  m concord_internal.models;
begin
  select * into m from concord_internal.models o where o.rel = log_owner_of.rel;
  if found then
    perform concord_internal.make_trigger_functions(m);
  end if;
end
$$;

create function concord_internal.stamp_function(protection integer)
returns text
language sql
immutable
return format('concord_internal.protect_%s', protection);

-- One function for a table's triggers. The table's owner may execute it, since a partition that is made later takes the
-- trigger over with the owner's rights; on another table it would stamp and keep that one's rows, and do no harm. It binds
-- whom row-level security binds, and nobody else: a superuser writes what it likes, and so does a foreign key's cascade.
create function concord_internal.make_stamp_function(p concord_internal.protections)
returns void
language plpgsql
as $$
declare
  columns constant jsonb := concord_internal.columns_of(p.rel);
  root constant text := case when (select relkind from pg_class where oid = p.rel) = 'p' then ' or row_security_active(pg_partition_root(tg_relid))' else '' end;
  stamps text := '';
  keeps text := '';
  r record;
begin
  for r in
    select * from (values (p.tenant_column, '(who).tenant'), (p.owner_column, format('concord_internal.owner_of(who, %s)', p.delegated::text))) r(col, mine)
     where col is not null
  loop
    stamps := stamps || format($stamp$
    if (%3$s) is null then
      perform concord_internal.fail('forbidden', %2$L, 'who acts can own no row here: it is no value of this column');
    elsif new.%1$I is null%4$s then
      new.%1$I := %3$s;
    elsif new.%1$I <> (%3$s) then
      perform concord_internal.fail('forbidden', %2$L, 'a row belongs to who writes it: leave the column out');
    end if;$stamp$, r.col, r.col, concord_internal.as_column_type(columns->(r.col::text)->>'t', r.mine),
      case when columns->(r.col::text)->>'t' = 'text' or columns->(r.col::text)->>'t' like 'character varying%' then format(' or new.%I = ''''', r.col) else '' end);
    keeps := keeps || format($keep$
  if new.%1$I is distinct from old.%1$I then
    perform concord_internal.fail('forbidden', %2$L, 'whose a row is does not change');
  end if;$keep$, r.col, r.col);
  end loop;
  if p.contract = 'comments/v1' then
    stamps := stamps || E'\n    new.at := clock_timestamp();';
    keeps := keeps || $keep$
  if (new.at, new.model, new.row_id, new.target, new.reply_to) is distinct from (old.at, old.model, old.row_id, old.target, old.reply_to) then
    perform concord_internal.fail('forbidden', 'body', 'of a comment only the body changes');
  end if;$keep$;
  end if;
  execute format('create or replace function %s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as %L',
    concord_internal.stamp_function(p.id), format($body$
declare
  who concord.principal;
begin
  if not (row_security_active(tg_relid)%1$s) then
    return new;
  elsif tg_op = 'TRUNCATE' then
    perform concord_internal.fail('forbidden', 'rel', 'TRUNCATE would take the rows of every tenant');
  end if;
  who := concord.principal();
  if who.id is null then
    perform concord_internal.fail('unauthenticated');
  end if;
  if tg_op = 'INSERT' then%2$s%4$s
    return new;
  end if;%3$s%4$s
  return new;
end$body$, root, stamps, keeps, case when p.editor_column is null then '' else format($editor$
  new.%I := concord_internal.owner_of(who, false);$editor$, p.editor_column) end));
  execute format('revoke all on function %s() from public', concord_internal.stamp_function(p.id));
  execute format('grant execute on function %s() to %s', concord_internal.stamp_function(p.id), (select relowner::regrole from pg_class where oid = p.rel));
end
$$;

-- The relation as it is before anything is done to it; once.
create function concord_internal.note_relation(rel regclass, protected regclass)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform concord_internal.demand_owner(rel);
  perform concord_internal.demand_owner(protected);
  insert into concord_internal.protected_relations (rel, protection, was_enabled, was_forced)
  select note_relation.rel, p.id, c.relrowsecurity, c.relforcerowsecurity
    from concord_internal.protections p, pg_class c
   where p.rel = protected and c.oid = note_relation.rel and note_relation.rel in (select concord_internal.relations_of(protected))
  on conflict on constraint protected_relations_pkey do nothing;
end
$$;

create function concord_internal.policy_names()
returns name[]
language sql
immutable
return array['concord_open', 'concord_wall', 'concord_read', 'concord_insert', 'concord_update', 'concord_delete']::name[];

-- The policies of a relation, each as a hash over all that it says. On this search_path, so that what is deparsed is the
-- same for everybody.
create function concord_internal.policies_of(rel regclass)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
  select coalesce(jsonb_object_agg(o.polname, md5(concat_ws('|', o.polcmd, o.polpermissive, o.polroles,
           pg_get_expr(o.polqual, o.polrelid), '|', pg_get_expr(o.polwithcheck, o.polrelid)))), '{}')
    from pg_policy o where o.polrelid = rel and o.polname = any (concord_internal.policy_names())
$$;

-- The end of protect: the policies are noted as they are.
create function concord_internal.seal_protection(rel regclass, made_check boolean)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  p concord_internal.protections;
begin
  perform concord_internal.demand_owner(rel);
  select * into p from concord_internal.protections o where o.rel = seal_protection.rel;
  update concord_internal.protections o set made_check = o.made_check or seal_protection.made_check where o.id = p.id;
  update concord_internal.protected_relations r set policies = concord_internal.policies_of(r.rel) where r.protection = p.id;
end
$$;

create function concord_internal.forget_protection(rel regclass)
returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  gone concord_internal.protections;
begin
  perform concord_internal.demand_owner(rel);
  delete from concord_internal.protections p where p.rel = forget_protection.rel returning * into gone;
  execute format('drop function if exists %s()', concord_internal.stamp_function(gone.id));
  perform concord_internal.log_owner_of(rel);
end
$$;

-- Of tables that were dropped.
create function concord_internal.prune_protections()
returns void
language plpgsql
as $$
declare
  gone concord_internal.protections;
begin
  delete from concord_internal.protected_relations r where not exists (select from pg_class c where c.oid = r.rel);
  for gone in
    delete from concord_internal.protections p where not exists (select from pg_class c where c.oid = p.rel) returning p.*
  loop
    if not exists (select from pg_trigger t where t.tgfoid = to_regprocedure(concord_internal.stamp_function(gone.id) || '()')) then
      execute format('drop function if exists %s()', concord_internal.stamp_function(gone.id));
    end if;
  end loop;
end
$$;

-- For the caller who owns it; nulls where it is not protected.
create function concord_internal.protection_of(rel regclass)
returns concord_internal.protections
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  p concord_internal.protections;
begin
  if concord_internal.owns(rel) then
    select * into p from concord_internal.protections o where o.rel = protection_of.rel;
  end if;
  return p;
end
$$;

create function concord_internal.relations_protected(rel regclass)
returns setof concord_internal.protected_relations
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select r.* from concord_internal.protections p join concord_internal.protected_relations r on r.protection = p.id
   where p.rel = relations_protected.rel and concord_internal.owns(relations_protected.rel)
     and exists (select from pg_class c where c.oid = r.rel)
$$;

select concord_internal.open_to('concord_internal.rules_of(concord_internal.protections,jsonb)', 'public');
select concord_internal.open_to('concord_internal.demand_protection(concord_internal.protections)', 'public');
select concord_internal.open_to('concord_internal.define_protection(concord_internal.protections)', 'public');
select concord_internal.open_to('concord_internal.groups_of(regclass)', 'public');
select concord_internal.open_to('concord_internal.log_owner_of(regclass)');
select concord_internal.open_to('concord_internal.stamp_function(integer)', 'public');
select concord_internal.open_to('concord_internal.make_stamp_function(concord_internal.protections)');
select concord_internal.open_to('concord_internal.note_relation(regclass,regclass)', 'public');
select concord_internal.open_to('concord_internal.policies_of(regclass)', 'public');
select concord_internal.open_to('concord_internal.policy_names()', 'public');
select concord_internal.open_to('concord_internal.seal_protection(regclass,boolean)', 'public');
select concord_internal.open_to('concord_internal.forget_protection(regclass)', 'public');
select concord_internal.open_to('concord_internal.prune_protections()');
select concord_internal.open_to('concord_internal.protection_of(regclass)', 'public');
select concord_internal.open_to('concord_internal.relations_protected(regclass)', 'public');
