"""What uvicorn's settings are called here, for who comes from there. Rules: a table, and who asks it."""

from __future__ import annotations

from typing import Any

_PROXIES = "forwarded_allow_ips and secure_scheme_headers"
_LIMITS = "http_server(limits=Limits(...))"
_NO_WEBSOCKET = "nothing: Virtex has no websockets"
_NO_HEADER = "nothing: Virtex sends date and server as it is"

INSTEAD = {  # of uvicorn's settings, gunicorn's or Virtex's
    "access_log": "accesslog='-'",
    "app": "the service itself",
    "app_dir": "chdir or pythonpath",
    "backlog": "backlog",
    "callback_notify": "nothing",
    "date_header": _NO_HEADER,
    "env_file": "raw_env",
    "factory": "nothing: a function without parameters is called",
    "fd": "bind='fd://N'",
    "forwarded_allow_ips": "forwarded_allow_ips",
    "h11_max_incomplete_event_size": _LIMITS,
    "headers": "nothing: a proxy or middleware adds headers",
    "host": "bind='HOST:PORT'",
    "http": "nothing: HTTP/1.1 is httptools's",
    "interface": "nothing: applications are ASGI 3",
    "lifespan": "asgi_lifespan",
    "limit_concurrency": "worker_connections, or http_server(max_queue_size=)",
    "limit_max_requests": "max_requests",
    "limit_max_requests_jitter": "max_requests_jitter",
    "log_config": "logconfig, logconfig_dict or logconfig_json",
    "log_level": "loglevel",
    "loop": "nothing: the loop is uvloop's",
    "port": "bind='HOST:PORT'",
    "proxy_headers": _PROXIES,
    "reload": "reload",
    "reload_delay": "reload_engine",
    "reload_dirs": "reload_extra_files",
    "reload_excludes": "reload_extra_files",
    "reload_includes": "reload_extra_files",
    "root_path": "root_path",
    "server_header": _NO_HEADER,
    "ssl_ca_certs": "ca_certs",
    "ssl_cert_reqs": "cert_reqs",
    "ssl_certfile": "certfile",
    "ssl_ciphers": "ciphers",
    "ssl_keyfile": "keyfile",
    "ssl_keyfile_password": "the ssl_context hook",
    "ssl_version": "the ssl_context hook",
    "timeout_graceful_shutdown": "graceful_timeout",
    "timeout_keep_alive": "keepalive",
    "timeout_notify": "timeout",
    "timeout_worker_healthcheck": "timeout",
    "uds": "bind='unix:PATH'",
    "use_colors": "nothing: the log has no colours",
    "workers": "workers",
    "ws": _NO_WEBSOCKET,
    "ws_max_queue": _NO_WEBSOCKET,
    "ws_max_size": _NO_WEBSOCKET,
    "ws_per_message_deflate": _NO_WEBSOCKET,
    "ws_ping_interval": _NO_WEBSOCKET,
    "ws_ping_timeout": _NO_WEBSOCKET,
}


def ignored(worker_class: Any) -> list[str]:
    """A line for each key of CONFIG_KWARGS: Virtex 0.1's worker was uvicorn's, and passed them on to it."""
    given = getattr(worker_class, "CONFIG_KWARGS", None) or {}
    return [
        f"{worker_class.__name__}.CONFIG_KWARGS[{key!r}] has no effect, for VirtexWorker is not uvicorn's; "
        f"in its place: {INSTEAD.get(key, 'nothing, for uvicorn has no such setting')}"
        for key in given
    ]
