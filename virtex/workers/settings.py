"""gunicorn's settings as the worker understands them: each is honoured, or refused by name; none is ignored.

A setting that stands at gunicorn's default says nothing: the Limits of the application hold then.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from ..limits import Limits, allowance
from ..logs import check_form

UNLIMITED = 1 << 40  # what 0 means in gunicorn's limit_request_* settings
LEAST_ANSWERING = 2  # seconds of graceful_timeout that VIRTEX_DRAIN_DELAY leaves
TLS_BYTES = 50_000  # that a connection takes which says nothing, in OpenSSL and uvloop; without TLS it is 3 KB
OTHER_FILES = 64  # that a worker holds open beside its connections: log files, the event loop's, the application's

_AS_LIMITS = {
    "limit_request_line": "request_line",
    "limit_request_fields": "header_fields",
    "worker_connections": "connections",
    "keepalive": "keep_alive_seconds",
}

_STRICT = "Virtex takes what RFC 9112 allows and no more"
_NO_HTTP2 = "Virtex speaks HTTP/1.1; let a proxy in front speak HTTP/2"
_NO_WEBSOCKET = "Virtex has no websockets"
_REFUSED = {
    "asgi_disconnect_grace_period": "it is for gunicorn's own ASGI worker",
    "casefold_http_method": _STRICT,
    "forwarder_headers": "it is for WSGI environments",
    "header_map": "it is for WSGI environments",
    "http2_cleartext": _NO_HTTP2,
    "http2_initial_window_size": _NO_HTTP2,
    "http2_max_concurrent_streams": _NO_HTTP2,
    "http2_max_frame_size": _NO_HTTP2,
    "http2_max_header_list_size": _NO_HTTP2,
    "http_parser": "heads are checked by httptools",
    "http_protocols": _NO_HTTP2,
    "permit_obsolete_folding": _STRICT,
    "permit_unconventional_http_method": _STRICT,
    "permit_unconventional_http_version": _STRICT,
    "post_request": "it is for WSGI requests",
    "pre_request": "it is for WSGI requests",
    "protocol": "Virtex speaks HTTP only",
    "proxy_allow_ips": "the PROXY protocol is not spoken",
    "proxy_protocol": "the PROXY protocol is not spoken; let the proxy send X-Forwarded-For",
    "sendfile": "Virtex sends no files",
    "ssl_version": "gunicorn itself ignores it; the ssl_context hook sets minimum_version",
    "strip_header_spaces": _STRICT,
    "suppress_ragged_eofs": "it is for blocking sockets",
    "do_handshake_on_connect": "it is for blocking sockets",
    "threads": 'Virtex has one thread for sockets; http_server(executor="thread") gives the model its own',
    "tmp_upload_dir": "bodies are kept in memory",
    "uwsgi_allow_ips": "Virtex speaks HTTP only",
    "websocket_max_message_size": _NO_WEBSOCKET,
}


def check(cfg: Any) -> None:
    """Raises ValueError for the settings that can't be honoured, all at once."""
    refused = [f"{name}: {why}" for name, why in _REFUSED.items() if name in cfg.settings and is_set(cfg, name)]
    if cfg.asgi_loop not in ("auto", "uvloop"):
        refused.append(f"asgi_loop: expected auto or uvloop, got {cfg.asgi_loop}")
    if (delay := drain_delay()) and delay > cfg.graceful_timeout - LEAST_ANSWERING:
        refused.append(
            f"VIRTEX_DRAIN_DELAY={delay:g}: expected {LEAST_ANSWERING} s less than graceful_timeout, which is "
            f"{cfg.graceful_timeout} s: who comes last is to be answered, too"
        )
    check_form()
    if refused:
        raise ValueError("VirtexWorker does not take these settings:\n  " + "\n  ".join(refused))


def drain_delay() -> float:
    """Seconds for which a worker that was told to stop still takes connections; gunicorn has no setting for it."""
    text = os.environ.get("VIRTEX_DRAIN_DELAY") or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 3600:
        raise ValueError(f"VIRTEX_DRAIN_DELAY={text!r}: expected seconds from 0 to 3600")
    return seconds


def trust(cfg: Any) -> Callable[[Any, list[tuple[bytes, bytes]]], bool]:
    """secure_scheme_headers, believed if they come from forwarded_allow_ips or by a unix socket, as in gunicorn."""
    names = {name.lower().encode(): value.lower().encode() for name, value in cfg.secure_scheme_headers.items()}
    anybody = "*" in cfg.forwarded_allow_ips
    networks = [] if anybody else cfg.forwarded_allow_networks()

    @lru_cache(1024)
    def is_trusted(host: str) -> bool:
        address = ip_address(host.partition("%")[0])
        return any(address in network for network in networks)

    def says_https(client: Any, headers: list[tuple[bytes, bytes]]) -> bool:
        said = [value.lower() == names[name] for name, value in headers if name in names]
        if not said or not all(said):  # two that contradict each other prove nothing
            return False
        return anybody or not isinstance(client, tuple) or is_trusted(client[0])

    return says_https


def is_set(cfg: Any, name: str) -> bool:
    """Whether a setting differs from gunicorn's default; as parsed, for some defaults are written as text."""
    setting = cfg.settings[name]
    return bool(setting.get() != type(setting)().get())


def merge_limits(limits: Limits, cfg: Any, log: Any) -> Limits:
    """The application's limits with what gunicorn was told to set, as far as memory and files are there for them."""
    most = allowance(limits.max_bytes, cfg.workers).max_bytes
    changes: dict[str, Any] = {"max_bytes": most} | {
        ours: getattr(cfg, name) or UNLIMITED
        for name, ours in _AS_LIMITS.items()
        if is_set(cfg, name) and (getattr(cfg, name) or name != "keepalive")  # keepalive 0: see Connections.closing
    }
    if is_set(cfg, "limit_request_field_size"):
        fields = changes.get("header_fields", limits.header_fields)
        changes["header_bytes"] = min(UNLIMITED, (cfg.limit_request_field_size or UNLIMITED) * fields)
    if cfg.is_ssl and limits.max_bytes is None:
        limits = replace(limits, connections=min(limits.connections, max(most // TLS_BYTES, 1)))
    limits = replace(limits, **changes)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    fit = UNLIMITED if files == resource.RLIM_INFINITY else max(1, files - OTHER_FILES)
    if limits.connections <= fit:
        return limits
    if "connections" in changes:
        log.warning(
            "worker_connections is %d, but this process may open only %d files (RLIMIT_NOFILE): "
            "%d connections are taken at most; `ulimit -n` raises it",
            *(limits.connections, files, fit),
        )
    return replace(limits, connections=fit)
