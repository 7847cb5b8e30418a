-- Writes endings into the set, ordered by the server's time, and publishes them. ARGV: channel, the longest life, how many
-- the set may hold, then the endings as text, which ends in the time until which each has to be remembered.
local key, channel, life, most = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local told = {}
for at = 4, #ARGV do
  redis.call('ZADD', key, now, ARGV[at])
  told[#told + 1] = ARGV[at]
end
-- The oldest go first, a few at a time; a minute for clocks that differ.
for _, old in ipairs(redis.call('ZRANGE', key, 0, 99)) do
  local ends = tonumber(string.match(old, ':(%d+)$'))
  if not ends or ends + 60000 < now then redis.call('ZREM', key, old) end
end
redis.call('ZREMRANGEBYRANK', key, 0, -most - 1)
if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, life) end
redis.call('PUBLISH', channel, table.concat(told, '\n'))
return now
