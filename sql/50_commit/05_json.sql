create function concord_internal.as_jsonb(given text)
returns jsonb
language sql
immutable
return given::jsonb;
