#!lua flags=no-writes
-- The live entry, and the staged one of this version, as they are at one moment.
-- KEYS: doc, stages   ARGV: version, what stands before the saga_id in a stage key
local saga_id = redis.call('HGET', KEYS[2], ARGV[1])
return { redis.call('GET', KEYS[1]), saga_id and redis.call('GET', ARGV[2] .. saga_id) }
