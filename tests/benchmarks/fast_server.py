"""A server over stdio that does almost nothing, so that the client's time dominates.

It does not parse messages. It treats each line with an id as a request, and the first request as
`initialize`. Depending on its version, the SDK writes the id before or after the parameters.

Usage: fast_server.py SIZE SECONDS: the size of each answer, and the time before the server reads.
"""

import os
import sys
import time

size, seconds = int(sys.argv[1]), float(sys.argv[2])
time.sleep(seconds)
answer = b'{"content":[{"type":"text","text":"%s"}]}' % (b"x" * size)
result = (
    b'{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},'
    b'"serverInfo":{"name":"fast","version":"1"}}'
)
with os.fdopen(0, "rb", buffering=1 << 20) as requests, os.fdopen(1, "wb", buffering=0) as answers:
    for line in requests:
        start = line.find(b'"id":') + 5
        if start < 5:
            continue
        digits = line[start : start + 20].replace(b"}", b",").partition(b",")[0]
        rest = memoryview(b'{"jsonrpc":"2.0","id":%s,"result":%s}\n' % (digits, result))
        while rest:
            rest = rest[answers.write(rest) :]
        result = answer
