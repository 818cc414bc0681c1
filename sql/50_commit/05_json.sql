-- JSON text as jsonb, whatever it holds. What the log and the rows give as JSON text is always JSON, but a column of type json
-- may hold what jsonb refuses: \u0000, half a surrogate pair, a number beyond numeric, a depth beyond this session's stack. One
-- such value must not take down all that stands beside it. So where the whole can't be cast, each of its top-level values
-- is, and one that can't be becomes a string, its own text (in which \u0000 is six harmless characters). Taken apart by
-- tokens, since json_each refuses the same things. Text without a top level is such a string as a whole.
-- Null, or a key left out, where the text alone is too long for jsonb (256 MB).
create function concord_internal.as_jsonb(given text)
returns jsonb
language plpgsql
immutable strict
set search_path = pg_catalog, pg_temp
as $$
declare
  outer_text text;
  -- A string; what is in brackets, up to three deep. They make most values one token.
  string constant text := '"(?:[^"\\]|\\.)*"';
  flat constant text := format('[[{](?:[^][{}"]|%s)*[]}]', string);
  deeper constant text := format('[[{](?:[^][{}"]|%s|%s)*[]}]', string, flat);
  deepest constant text := format('[[{](?:[^][{}"]|%s|%s)*[]}]', string, deeper);
  entry text;
  name text;
  answer jsonb := '{}';
begin
  begin
    return given::jsonb;
  exception when data_exception or program_limit_exceeded then
    outer_text := btrim(given, E' \t\r\n');
  end;
  if outer_text not like '{%}' then
    return to_jsonb(given);
  end if;
  for entry in
    with token as (
      select m[1] as t, n, sum(case when m[1] in ('{', '[') then 1 when m[1] in ('}', ']') then -1 else 0 end) over upto as depth
        from regexp_matches(substr(outer_text, 2, length(outer_text) - 2),
                            format('(?:[^][{}",]|%s|%s)+|.', string, deepest), 'g') with ordinality x(m, n)
      window upto as (order by n rows unbounded preceding)),
    placed as (
      select t, n, t = ',' and depth = 0 as divides, count(*) filter (where t = ',' and depth = 0) over upto as i
        from token
      window upto as (order by n rows unbounded preceding))
    select string_agg(t, '' order by n) from placed where not divides group by i order by i
  loop
    name := substring(entry from '^\s*"(?:[^"\\]|\\.)*"\s*:');
    begin
      answer := answer || jsonb_build_object(rtrim(name, E': \t\r\n')::jsonb #>> '{}', substr(entry, length(name) + 1)::jsonb);
    exception when data_exception or program_limit_exceeded then
      begin
        answer := answer || jsonb_build_object(rtrim(name, E': \t\r\n')::jsonb #>> '{}', substr(entry, length(name) + 1));
      exception when data_exception or program_limit_exceeded then
        null;
      end;
    end;
  end loop;
  return answer;
exception when data_exception or program_limit_exceeded or internal_error then
  return null;
end
$$;

select concord_internal.open_to('concord_internal.as_jsonb(text)', 'concord_app');
