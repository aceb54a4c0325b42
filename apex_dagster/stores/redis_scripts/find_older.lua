#!lua flags=no-writes
-- How many of the live entry and the view are there that are no later version's.
-- KEYS: doc, fence, view   ARGV: version
if tonumber(redis.call('GET', KEYS[2]) or '0') > tonumber(ARGV[1]) then
  return 0
end
return redis.call('EXISTS', KEYS[1], KEYS[3])
