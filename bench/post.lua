-- What wrk sends, and what it says at the end: one line of JSON, times in microseconds, for bench/*.py.
-- args: the body, its type, the path, and the length of V2's head; @FILE in place of a body that is long or not text.
-- wrk makes the request once and writes it from that one buffer, so a long body costs it no more than the kernel's copy.
wrk.method = "POST"

function init(args)
  wrk.headers["Content-Type"] = args[2] or "application/json"
  wrk.path = args[3] or wrk.path
  if args[4] and args[4] ~= "" then
    wrk.headers["Inference-Header-Content-Length"] = args[4]
  end
  wrk.body = args[1]
  if string.sub(wrk.body, 1, 1) == "@" then
    local file = assert(io.open(string.sub(wrk.body, 2), "rb"))
    wrk.body = file:read("*a")
    file:close()
  end
end

function done(summary, latency, requests)
  local failed = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"microseconds":%d,"p50":%.1f,"p99":%.1f,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    failed.status, failed.connect + failed.read + failed.write + failed.timeout))
end
