-- What a dump of the database carries besides the definitions, when the pack is an extension. In the order of the rooms.
select concord_internal.dump_with_data('concord_internal.settings');
select concord_internal.dump_with_data('concord_internal.trusted_logins');
select concord_internal.dump_with_data('concord_internal.claim_logins');
select concord_internal.dump_with_data('concord_internal.models');
select concord_internal.dump_with_data('concord_internal.model_id');
select concord_internal.dump_with_data('concord_internal.group_horizons');
select concord_internal.dump_with_data('concord_internal.protections');
select concord_internal.dump_with_data('concord_internal.protections_id_seq');
select concord_internal.dump_with_data('concord_internal.protected_relations');
select concord_internal.dump_with_data('concord_internal.packs');
select concord_internal.dump_with_data('concord_internal.pack_objects');
select concord_internal.dump_with_data('concord_internal.pack_objects_n_seq');
select concord_internal.dump_with_data('concord_internal.delta_seq');
select concord_internal.dump_with_data('concord_internal.deltas_default');
select concord_internal.dump_with_data('concord_internal.log_floor');
select concord_internal.dump_with_data('concord_internal.epoch_ordinal');
select concord_internal.dump_with_data('concord_internal.commits');
select concord_internal.dump_with_data('concord_internal.held');
select concord_internal.dump_with_data('concord_internal.log_cut');
-- Not these:
--   deltas                        has no rows of its own; leaves that maintain() made are no members, and dumped as any table is
--   epoch_mark, _place, _host,    where they are missing a new epoch begins, and that is what a restored database needs
--   epoch_start
--   upkeep                        plans in ids of the server it was dumped from; where it is missing maintain() begins anew
--   sessions, session_key         of the logins of one server
--   bulk_updates                  is about transactions that are running
