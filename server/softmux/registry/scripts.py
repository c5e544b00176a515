"""The registry's writes: one Lua script each, so that each happens wholly or not at all, in memory and in the log.

Time is Redis' own (`TIME`): leases and grace periods hold whatever the clocks of the servers say. Scripts that make
room, take back or turn back are allowed where Redis' memory is full; those that store files are refused there, whole.
"""

from __future__ import annotations

_ALLOWED_WHEN_FULL = "#!lua flags=allow-oom"

_NOW = """
local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end
"""

_CHANGED = """
local function changed(seq, changes, kind, tenant, task)
  local n, time = redis.call('INCR', seq), redis.call('TIME')
  redis.call('XADD', changes, 'MAXLEN', '~', '4096', string.format('%d-0', n), 'kind', kind,
             'tenant', tenant, 'task', task, 'at', string.format('%s.%06d', time[1], time[2]))
end
"""

_AUDITED = """
local function audited(audit, actor, action, tenant, task, version, digest, detail)
  redis.call('XADD', audit, '*', 'actor', actor, 'action', action, 'tenant', tenant, 'task', task,
             'version', version, 'digest', digest, 'detail', detail)
end
"""

_QUOTA = """
-- The limit of the tenant that a version would exceed, as {'quota', limit's name, limit, used, added}; nil: none.
-- What versions take is in `sizes`, by digest; of registries from before it, it is taken from the manifests.
local function quota(tenants, tenant, tasks, task, digest, bytes, refs, sizes, manifests)
  local record = cjson.decode(redis.call('HGET', tenants, tenant))
  local limits = type(record) == 'table' and record.limits or {}
  local most = tonumber(limits.adapters)
  if most and not redis.call('ZSCORE', tasks, task) and redis.call('ZCARD', tasks) >= most then
    return {'quota', 'adapters', limits.adapters, redis.call('ZCARD', tasks), 1}
  end
  most = tonumber(limits.stored_bytes)
  if not most or redis.call('HEXISTS', refs, digest) == 1 then return nil end
  local used = 0
  for _, other in ipairs(redis.call('HKEYS', refs)) do
    local size = redis.call('HGET', sizes, other)
    if not size then
      size = 0
      local manifest = redis.call('HGET', manifests, other)
      for _, file in ipairs(manifest and cjson.decode(manifest).files or {}) do size = size + file.size end
      redis.call('HSET', sizes, other, string.format('%d', size))
    end
    used = used + tonumber(size)
  end
  if used + tonumber(bytes) > most then
    local shown = {}
    for at, value in ipairs({most, used, bytes}) do shown[at] = string.format('%d', value) end
    return {'quota', 'stored_bytes', unpack(shown)}
  end
end
"""

CHECK_QUOTA = (
    _QUOTA
    + """
-- Before anything of an upload is stored. KEYS: tenants tasks refs sizes manifests; ARGV: tenant task digest bytes.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return {'no_tenant'} end
return quota(KEYS[1], ARGV[1], KEYS[2], ARGV[2], ARGV[3], ARGV[4], KEYS[3], KEYS[4], KEYS[5]) or {'ok'}
"""
)

VIEWS = """#!lua flags=no-writes
-- Tasks whole, in one reply: a client parses that many times faster than thousands of hashes.
-- KEYS: shares, then versions and active of each task; ARGV: the tasks.
-- Answers MessagePack: {versions, active, share or ''} of each, the hashes as fields and values in turn.
local found = {}
for i, task in ipairs(ARGV) do
  local share = redis.call('HGET', KEYS[1], task) or ''
  found[i] = {redis.call('HGETALL', KEYS[2 * i]), redis.call('HGETALL', KEYS[2 * i + 1]), share}
end
return cmsgpack.pack(found)
"""

PUBLISH = (
    _CHANGED
    + _AUDITED
    + _QUOTA
    + """
-- KEYS: seq changes tenants tasks counters versions active digests manifests refs garbage files filerefs loose audit
--       sizes
-- ARGV: tenant task base digest stored manifest publication activate only_new actor size, then (sha256, inline, bytes)
--       of each file. Answers {state, version, created, stored, active version}, or what `quota` says.
local seq, changes, tenants, tasks, counters, versions, active, digests = unpack(KEYS, 1, 8)
local manifests, refs, garbage, files, filerefs, loose, audit, sizes = unpack(KEYS, 9, 16)
local tenant, task, base, digest, stored, manifest, publication, activate, only_new, actor, size = unpack(ARGV, 1, 11)

if redis.call('HEXISTS', tenants, tenant) == 0 then return {'no_tenant'} end
local number = redis.call('HGET', digests, digest)
local created = 0
if number then
  stored = redis.call('HGET', versions, number)
  if cjson.decode(stored).publication == publication then created = 1 end  -- our own, its reply was lost
end
if only_new == '1' and created == 0 and redis.call('HEXISTS', counters, task) == 1 then return {'present'} end

if not number then
  local beyond = quota(tenants, tenant, tasks, task, digest, size, refs, sizes, manifests)
  if beyond then return beyond end
  for i = 12, #ARGV, 3 do
    local sha = ARGV[i]
    if ARGV[i + 1] == '0' and redis.call('HEXISTS', filerefs, sha) == 0 and not redis.call('ZSCORE', loose, sha) then
      return {'lease_lost'}
    end
  end
  number = tostring(redis.call('HINCRBY', counters, task, 1))
  created = 1
  redis.call('HSET', versions, number, stored)
  redis.call('HSET', digests, digest, number)
  redis.call('ZADD', tasks, 0, task)
  redis.call('HINCRBY', refs, digest, 1)
  redis.call('HSET', sizes, digest, size)
  redis.call('ZREM', garbage, digest)
  if redis.call('HSETNX', manifests, digest, manifest) == 1 then
    for i = 12, #ARGV, 3 do
      local sha = ARGV[i]
      redis.call('HINCRBY', filerefs, sha, 1)
      redis.call('ZREM', loose, sha)
    end
  end
  if activate == '1' then redis.call('HSET', active, base, number) end
  audited(audit, actor, 'task.publish', tenant, task, number, digest,
          '{"activated":' .. (activate == '1' and 'true' or 'false') .. '}')
  changed(seq, changes, 'task', tenant, task)
elseif activate == '1' and created == 0 and redis.call('HGET', active, base) ~= number then
  redis.call('HSET', active, base, number)
  audited(audit, actor, 'task.activate', tenant, task, number, digest, '')
  changed(seq, changes, 'task', tenant, task)
end
for i = 12, #ARGV, 3 do  -- also where the version was there already: a file damaged in Redis is healed
  if ARGV[i + 1] == '1' and redis.call('HGET', files, ARGV[i]) ~= ARGV[i + 2] then
    redis.call('HSET', files, ARGV[i], ARGV[i + 2])
  end
end
return {'ok', number, created, stored, redis.call('HGET', active, base) or ''}
"""
)

ACTIVATE = (
    _ALLOWED_WHEN_FULL
    + _CHANGED
    + _AUDITED
    + """
-- KEYS: seq changes audit versions active; ARGV: tenant task version actor. Answers {state, stored}.
local seq, changes, audit, versions, active = unpack(KEYS)
local tenant, task, number, actor = unpack(ARGV)
local stored = redis.call('HGET', versions, number)
if not stored then
  if redis.call('EXISTS', versions) == 1 then return {'no_version'} end
  return {'no_task'}
end
local manifest = cjson.decode(stored).manifest
local base = manifest.base_fingerprint
if redis.call('HGET', active, base) ~= number then
  redis.call('HSET', active, base, number)
  audited(audit, actor, 'task.activate', tenant, task, number, manifest.digest, '')
  changed(seq, changes, 'task', tenant, task)
end
return {'ok', stored}
"""
)

DELETE = (
    _ALLOWED_WHEN_FULL
    + _NOW
    + _CHANGED
    + _AUDITED
    + """
-- KEYS: seq changes tasks versions active digests refs garbage tombstones shares audit sizes
-- ARGV: tenant task deletion actor. Answers {state}. The counter stays: no number names two things.
local seq, changes, tasks, versions, active, digests, refs, garbage, tombstones, shares, audit, sizes = unpack(KEYS)
local tenant, task, deletion, actor = unpack(ARGV)
if redis.call('EXISTS', versions) == 0 then
  if redis.call('HGET', tombstones, task) == deletion then return {'ok'} end  -- our own, its reply was lost
  return {'no_task'}
end
for _, digest in ipairs(redis.call('HKEYS', digests)) do
  if redis.call('HINCRBY', refs, digest, -1) <= 0 then
    redis.call('HDEL', refs, digest)
    redis.call('HDEL', sizes, digest)
    redis.call('ZADD', garbage, clock(), digest)
  end
end
redis.call('DEL', versions, active, digests)
redis.call('ZREM', tasks, task)
redis.call('HDEL', shares, task)
audited(audit, actor, 'task.delete', tenant, task, '', '', '')
redis.call('HSET', tombstones, task, deletion)
changed(seq, changes, 'task', tenant, task)
return {'ok'}
"""
)

LEASE = (
    _NOW
    + """
-- Before an upload looks whether its blobs are there: from now on, for a grace period, they won't be collected.
-- KEYS: loose filerefs deleting; ARGV: patience sha256... Answers {state}.
local loose, filerefs, deleting = unpack(KEYS)
local now, patience = clock(), tonumber(ARGV[1])
for i = 2, #ARGV do
  local since = tonumber(redis.call('HGET', deleting, ARGV[i]) or '')
  if since and since > now then  -- the clock was put back: the collector's time begins anew
    redis.call('HSET', deleting, ARGV[i], now)
    since = now
  end
  if since and now - since < patience then return {'busy'} end
end
for i = 2, #ARGV do
  redis.call('HDEL', deleting, ARGV[i])
  if redis.call('HEXISTS', filerefs, ARGV[i]) == 0 then redis.call('ZADD', loose, now, ARGV[i]) end
end
return {'ok'}
"""
)

COLLECT = (
    _ALLOWED_WHEN_FULL
    + _NOW
    + """
-- Drops what nothing has referenced for the grace period. Answers the blobs to delete now from the store.
-- KEYS: garbage manifests files filerefs loose deleting; ARGV: grace, patience (seconds).
local garbage, manifests, files, filerefs, loose, deleting = unpack(KEYS)
local now, grace, patience = clock(), tonumber(ARGV[1]), tonumber(ARGV[2])
for _, digest in ipairs(redis.call('ZRANGEBYSCORE', garbage, '-inf', now - grace, 'LIMIT', 0, 100)) do
  local manifest = redis.call('HGET', manifests, digest)
  if manifest then
    for _, file in ipairs(cjson.decode(manifest).files) do
      local sha = file.sha256
      if redis.call('HINCRBY', filerefs, sha, -1) <= 0 then
        redis.call('HDEL', filerefs, sha)
        if redis.call('HDEL', files, sha) == 0 then redis.call('ZADD', loose, now, sha) end
      end
    end
    redis.call('HDEL', manifests, digest)
  end
  redis.call('ZREM', garbage, digest)
end
local doomed = {}
for _, sha in ipairs(redis.call('ZRANGEBYSCORE', loose, '-inf', now - grace, 'LIMIT', 0, 100)) do
  redis.call('ZREM', loose, sha)
  redis.call('HSET', deleting, sha, now)
  table.insert(doomed, sha)
end
local waiting = redis.call('HGETALL', deleting)
for i = 1, #waiting, 2 do
  local since = tonumber(waiting[i + 1])
  if now - since >= patience or since > now then redis.call('HSET', deleting, waiting[i], now) end
  if now - since >= patience then table.insert(doomed, waiting[i]) end  -- left by a collector that died
end
return doomed
"""
)

SHARE = (
    _ALLOWED_WHEN_FULL
    + _CHANGED
    + _AUDITED
    + """
-- KEYS: seq changes audit versions shares; ARGV: tenant task share actor. An empty share ends it. Answers {state}.
local seq, changes, audit, versions, shares = unpack(KEYS)
local tenant, task, share, actor = unpack(ARGV)
if redis.call('EXISTS', versions) == 0 then return {'no_task'} end
if (redis.call('HGET', shares, task) or '') == share then return {'ok'} end
if share == '' then
  redis.call('HDEL', shares, task)
  audited(audit, actor, 'task.unshare', tenant, task, '', '', '')
else
  redis.call('HSET', shares, task, share)
  audited(audit, actor, 'task.share', tenant, task, '', '', share)
end
changed(seq, changes, 'task', tenant, task)
return {'ok'}
"""
)

PUT_KEY = (
    _ALLOWED_WHEN_FULL
    + _CHANGED
    + _AUDITED
    + """
-- KEYS: seq changes audit tenants keys; ARGV: tenant id record actor action detail. Answers {state, what is there}.
local seq, changes, audit, tenants, keys = unpack(KEYS)
local tenant, id, record, actor, action, detail = unpack(ARGV)
local current = redis.call('HGET', keys, id)
if action == 'key.revoke' and current then
  local at = cjson.decode(current).revoked_at
  if at ~= nil and at ~= cjson.null then return {'ok', current} end  -- by another, or our own, its reply was lost
end
if redis.call('HEXISTS', tenants, tenant) == 0 then return {'no_tenant'} end
if current ~= record then
  redis.call('HSET', keys, id, record)
  audited(audit, actor, action, tenant, '', '', '', detail)
  changed(seq, changes, 'keys', tenant, '')
end
return {'ok', record}
"""
)

DELETE_TENANT = (
    _ALLOWED_WHEN_FULL
    + _CHANGED
    + _AUDITED
    + """
-- KEYS: seq changes audit tenants deleted keys tasks, then what else goes; ARGV: tenant deletion actor.
-- Answers {state, tasks, keys that are not revoked}. What its tasks had is the collector's.
local seq, changes, audit, tenants, deleted, keys, tasks = unpack(KEYS, 1, 7)
local tenant, deletion, actor = unpack(ARGV)
if redis.call('HEXISTS', tenants, tenant) == 0 then
  if redis.call('HGET', deleted, tenant) == deletion then return {'ok'} end  -- our own, its reply was lost
  return {'no_tenant'}
end
local active = 0
for _, data in ipairs(redis.call('HVALS', keys)) do
  local key = cjson.decode(data)
  if key.tenant == tenant and (key.revoked_at == nil or key.revoked_at == cjson.null) then active = active + 1 end
end
local count = redis.call('ZCARD', tasks)
if count > 0 or active > 0 then return {'in_use', count, active} end
redis.call('HDEL', tenants, tenant)
redis.call('HSET', deleted, tenant, deletion)
redis.call('DEL', unpack(KEYS, 8))
audited(audit, actor, 'tenant.delete', tenant, '', '', '', '')
changed(seq, changes, 'tenant', tenant, '')
return {'ok'}
"""
)

PUT_TENANT = (
    _ALLOWED_WHEN_FULL
    + _CHANGED
    + _AUDITED
    + """
-- KEYS: seq changes audit tenants deleted; ARGV: tenant expected record actor action detail.
-- Answers {state, what is there}.
local seq, changes, audit, tenants, deleted = unpack(KEYS)
local tenant, expected, record, actor, action, detail = unpack(ARGV)
local current = redis.call('HGET', tenants, tenant) or ''
if current == record then return {'ok'} end  -- our own, its reply was lost
if current ~= expected then return {'other', current} end
if redis.call('HEXISTS', deleted, tenant) == 1 then return {'deleted'} end
redis.call('HSET', tenants, tenant, record)
audited(audit, actor, action, tenant, '', '', '', detail)
changed(seq, changes, 'tenant', tenant, '')
return {'ok'}
"""
)
