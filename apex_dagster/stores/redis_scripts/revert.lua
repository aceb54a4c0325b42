#!lua flags=allow-oom
-- Removes what is staged; an undo has to work when the memory is full, too.
-- KEYS: stage, stages   ARGV: version
redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
