-- What a dump of the database carries besides the definitions, when the pack is an extension. Not the epoch's marks: where
-- they are missing a new epoch begins, and that is what a restored database needs.
select concord_internal.dump_with_data('concord_internal.trusted_logins');
select concord_internal.dump_with_data('concord_internal.models');
select concord_internal.dump_with_data('concord_internal.model_id');
select concord_internal.dump_with_data('concord_internal.group_horizons');
select concord_internal.dump_with_data('concord_internal.delta_seq');
select concord_internal.dump_with_data('concord_internal.deltas_default');
select concord_internal.dump_with_data('concord_internal.log_floor');
select concord_internal.dump_with_data('concord_internal.commits');
select concord_internal.dump_with_data('concord_internal.held');
select concord_internal.dump_with_data('concord_internal.epoch_ordinal');
