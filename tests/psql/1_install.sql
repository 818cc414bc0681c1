-- What an installation consists of, and that nothing is the matter with it.
select concord.version();
select * from concord.verify();

-- The roles: who may use what. None of them logs in.
select rolname, rolcanlogin, rolsuper, rolbypassrls from pg_roles
 where rolname in ('concord_app', 'concord_owner', 'concord_service') order by 1;

-- Nobody but their owner has a privilege on a table of concord's.
select c.relname, a.privilege_type
  from pg_class c cross join lateral aclexplode(c.relacl) a
 where c.relnamespace = 'concord_internal'::regnamespace and a.grantee <> c.relowner;

-- Functions that run with their owner's rights pin their search_path, and PUBLIC has none by default.
select p.oid::regprocedure from pg_proc p
 where p.pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace)
   and (p.proacl is null or (p.prosecdef and p.proconfig[1] <> 'search_path=pg_catalog, pg_temp'));

-- The public face.
select p.oid::regprocedure from pg_proc p where p.pronamespace = 'concord'::regnamespace order by p.oid::regprocedure::text;
select c.relname, c.relkind from pg_class c where c.relnamespace = 'concord'::regnamespace and c.relkind = 'v' order by 1;
select p.oid::regprocedure as without_a_comment from pg_proc p
 where p.pronamespace = 'concord'::regnamespace and obj_description(p.oid, 'pg_proc') is null;

-- Nothing is tracked, nothing is logged, nobody acts.
select * from concord.models;
select concord.principal() is null as nobody;
select key, value = "default" as by_default from concord.settings;
