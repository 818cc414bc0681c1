-- pack: tenant
-- version: 1
-- set: tenant_type = text
-- protect: {"tenant_column": "tenant"}
-- track: {"tenant_column": "tenant"}
--
-- Whose a row is: stamped from the principal and never changed after, once the table is protected. tenant_type may be uuid or
-- bigint. The rows that a table has already need a fill.
create table :"table" (
  :"tenant" :tenant_type not null
);
