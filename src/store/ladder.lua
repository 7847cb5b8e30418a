-- Lock and result of one refresh token in one value; a write may only go up: absent < L < D < O.
local key, act, value, life = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local now = redis.call('GET', key)
local rung = now and string.sub(now, 1, 1)
if act == 'lock' then
  -- Our own lock is there when the answer to the first try was lost.
  if now and now ~= value then
    return rung == 'L' and 'L' or now
  end
  redis.call('SET', key, value, 'PX', life)
  return false
elseif act == 'renew' then
  return now == value and redis.call('PEXPIRE', key, life) or 0
elseif act == 'unlock' then
  return now == value and redis.call('DEL', key) or 0
elseif act == 'settle' then
  if rung ~= 'O' and not (rung == 'D' and string.sub(value, 1, 1) ~= 'O') then
    redis.call('SET', key, value, 'PX', life)
  end
  return 1
elseif act == 'delivered' then
  if rung == 'O' and redis.call('PTTL', key) > tonumber(life) then
    redis.call('PEXPIRE', key, life)
  end
  return 1
end
return redis.error_reply('unknown act')
