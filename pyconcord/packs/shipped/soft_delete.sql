-- pack: soft_delete
-- version: 1
-- track: {"archive_column": "archived_at"}
--
-- A row that is put away and can be brought back: archived_at is null, or since when. Commits take operations archive and
-- unarchive on such a model.
create table :"table" (
  :"archived_at" timestamptz
);
create index on :"table" (:"archived_at") where :"archived_at" is not null;
