#!lua
-- Keeps how a version was shown, for the next who reads it. Not for one that is older than the fence:
-- who rendered it has read for so long that it was replaced, or deleted, meanwhile.
-- KEYS: view, fence   ARGV: version, body, ttl_s
if tonumber(ARGV[1]) < tonumber(redis.call('GET', KEYS[2]) or '0') then
  return 'stale'
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 'kept'
