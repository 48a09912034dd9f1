"""HttpProtocol, which anybody's event loop serves: what its connections share, and whom they serve."""

from __future__ import annotations

from kit.wire import StubServer

from virtex import HttpProtocol, Limits
from virtex.wire.asgi_host import AsgiHost
from virtex.wire.connections import Connections
from virtex.wire.protocol import hosted


async def echo(scope, receive, send):
    raise NotImplementedError


def test_connections_are_shared_by_the_protocols_of_one_app_and_loop(event_loop):
    async def both():
        return HttpProtocol(echo), HttpProtocol(echo), HttpProtocol(StubServer())

    first, second, other = event_loop.run_until_complete(both())
    assert isinstance(first.connections, Connections)
    assert first.connections is second.connections is not other.connections


def test_a_service_is_served_as_it_is_and_any_other_application_is_hosted():
    service = StubServer()
    assert hosted(service) is service
    host = hosted(echo, Limits(max_bytes=1000))
    assert type(host) is AsgiHost and (host.app, host.limits.max_bytes, host.budget.budget) == (echo, 1000, 1000)
