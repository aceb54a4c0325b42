#!lua flags=allow-oom
-- Removes a saga's entries whatever their status, and how its version was shown. The live entry goes
-- only if it is this saga's, and the fence stays: a late publish must find it.
-- KEYS: stage, doc, stages, view   ARGV: header, version, view header
local stage, doc, stages, view = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local header, version, view_header = ARGV[1], ARGV[2], ARGV[3]

redis.call('HDEL', stages, version)
local removed = redis.call('DEL', stage)
if redis.call('GETRANGE', doc, 0, #header - 1) == header then
  removed = removed + redis.call('DEL', doc)
end
if redis.call('GETRANGE', view, 0, #view_header - 1) == view_header then
  redis.call('DEL', view) -- not counted: it is made by readers, and no part of what was taken in
end
return removed
