"""HttpLoadTest, as every example shows it with --loadtest."""

from __future__ import annotations

from collections.abc import Sequence
from pprint import pprint

from virtex import HttpLoadTest, HttpMessage

HELP = "send messages at a steady rate, and print how the service did"


def load_test(url: str, messages: Sequence[HttpMessage], rate: int) -> None:
    """Send each message once, `rate` of them a second, however long the answers take; exits where one failed."""
    result = HttpLoadTest().run(url, list(messages), requests_per_second=rate)
    pprint(result.metrics.dict(), sort_dicts=False)
    if result.num_errors:
        error = next(answer.error for answer in result.responses if answer.error is not None)
        raise SystemExit(f"{result.num_errors} of {len(messages)} requests failed, the first one so: {error}")
