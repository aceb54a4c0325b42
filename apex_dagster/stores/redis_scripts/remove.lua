#!lua flags=allow-oom
-- A deletion: raises the fence to its version, so that no older version is ever published again, and
-- removes the live entry, how readers were shown it, and what is staged of older versions. Where a
-- later version has been published the fence shows it, and the first two are that one's.
-- KEYS: doc, fence, stages, view   ARGV: version, what stands before the saga_id in a stage key
local doc, fence, stages, view = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local version, prefix = tonumber(ARGV[1]), ARGV[2]
local removed = 0

local staged = redis.call('HGETALL', stages) -- version, saga_id, version, saga_id, ...
for i = 1, #staged, 2 do
  if tonumber(staged[i]) < version then
    removed = removed + redis.call('DEL', prefix .. staged[i + 1])
    redis.call('HDEL', stages, staged[i])
  end
end
if tonumber(redis.call('GET', fence) or '0') <= version then
  redis.call('SET', fence, version)
  removed = removed + redis.call('DEL', doc)
  redis.call('DEL', view) -- not counted: it is made by readers, and no part of what was taken in
end
return removed
