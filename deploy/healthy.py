"""The image's health check: is the service of this container ready, and need not be replaced? Exit code 0: yes.

Rules: Python alone, without Virtex, which takes longer to import; no proxy of the environment is asked.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException


def main() -> int:
    service = HTTPConnection("127.0.0.1", int(os.environ.get("PORT", "8080")), timeout=4)
    for what in ("live", "ready"):
        try:
            service.request("GET", f"/health/{what}")
            answer = service.getresponse()
            text = answer.read().decode()
        except (OSError, HTTPException) as error:
            print(f"/health/{what}: {error!r}")
            return 1
        if answer.status != 200:
            print(f"/health/{what}: {answer.status} {text}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
