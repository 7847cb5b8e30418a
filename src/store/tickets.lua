-- A sealed session with its generation before it; a newer one is not overwritten.
local key, generation, sealed, create, life = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now = redis.call('GET', key)
if not now then
  if create ~= '1' then return 0 end
elseif (tonumber(string.match(now, '^(%d+):')) or 0) > tonumber(generation) then
  return 0
end
redis.call('SET', key, generation .. ':' .. sealed, 'PX', life)
return 1
