-- POSTs the bodies of a folder in turn and prints one JSON line at the end.
local directory, kind, count = os.getenv("WRK_BODIES"), os.getenv("WRK_TYPE"), tonumber(os.getenv("WRK_COUNT"))
local requests, position = {}, 0
function init(args)
  for index = 0, count - 1 do
    local file = assert(io.open(string.format("%s/%02d", directory, index), "rb"))
    requests[index + 1] = wrk.format("POST", "/invocations", {["Content-Type"] = kind}, file:read("*a"))
    file:close()
  end
end
function request()
  position = position % count + 1
  return requests[position]
end
function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format('\nWRK {"requests":%d,"us":%d,"p50":%.1f,"p99":%.1f,"failed":%d}\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
