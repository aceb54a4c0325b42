#!lua flags=no-writes
-- KEYS: stage, doc   ARGV: header
local live = redis.call('GETRANGE', KEYS[2], 0, #ARGV[1] - 1) == ARGV[1]
return (live or redis.call('EXISTS', KEYS[1]) == 1) and 1 or 0
