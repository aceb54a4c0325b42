#!lua flags=allow-oom
-- Removes a saga's entries whatever their status. The live entry goes only if it is this saga's,
-- and the fence stays: a late publish must find it.
-- KEYS: stage, doc, stages   ARGV: header, version
local stage, doc, stages = KEYS[1], KEYS[2], KEYS[3]
local header, version = ARGV[1], ARGV[2]

redis.call('HDEL', stages, version)
local removed = redis.call('DEL', stage)
if redis.call('GETRANGE', doc, 0, #header - 1) == header then
  removed = removed + redis.call('DEL', doc)
end
return removed
