#!lua
-- Puts a version beside the live entry, unless it is there already, staged or live: a repeat that
-- lands after publish must not bring a staged copy back.
-- KEYS: stage, doc, stages   ARGV: body, header, version, saga_id, ttl_s
local stage, doc, stages = KEYS[1], KEYS[2], KEYS[3]
local body, header, version, saga_id, ttl_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if redis.call('GETRANGE', doc, 0, #header - 1) == header then
  return 0
end
if not redis.call('SET', stage, body, 'NX', 'EX', ttl_s) then
  return 0
end
redis.call('HSET', stages, version, saga_id)
redis.call('EXPIRE', stages, ttl_s)
return 1
