-- pack: owner
-- version: 1
-- set: owner_type = text
-- protect: {"owner_column": "owner"}
--
-- Who owns a row, stamped as the tenant is: a user's id, or agent:id, system:id. A row from before the pack has no owner,
-- unless it is filled, and is seen by nobody then.
create table :"table" (
  :"owner" :owner_type
);
