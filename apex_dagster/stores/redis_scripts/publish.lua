#!lua
-- The only way by which a live entry changes. The fence is the highest version ever published of
-- the document; it has no time to live, so it outlasts the entry and an older publisher that wakes
-- up after the entry has expired still does nothing.
-- KEYS: stage, doc, fence, stages   ARGV: header, version, ttl_s
local stage, doc, fence, stages = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local header, version, ttl_s = ARGV[1], ARGV[2], ARGV[3]

if tonumber(version) < tonumber(redis.call('GET', fence) or '0') then
  return 'stale'
end
local body = redis.call('GET', stage)
if not body then
  local live = redis.call('GETRANGE', doc, 0, #header - 1) == header
  return live and 'published' or 'missing'
end
-- A body is its header, then `"staged"` and the rest: decoding it here could cost milliseconds.
local rest = string.sub(body, #header + #'"staged"' + 1)
redis.call('SET', doc, header .. '"committed"' .. rest, 'EX', ttl_s)
redis.call('SET', fence, version)
redis.call('DEL', stage)
redis.call('HDEL', stages, version)
return 'published'
