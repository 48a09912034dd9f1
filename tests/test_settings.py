"""What docs/gunicorn.md promises of gunicorn's settings, setting by setting."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS, Config

from virtex.workers import settings

DOCS = (Path(__file__).parent.parent / "docs" / "gunicorn.md").read_text()
HONOURED, REFUSED = (
    dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", part, re.M)) for part in DOCS.split("## What is refused")
)

NOT_DEFAULT: dict[str, Any] = {
    "asgi_disconnect_grace_period": 1,
    "do_handshake_on_connect": True,
    "forwarder_headers": "REMOTE_USER",
    "header_map": "refuse",
    "http2_cleartext": "both",
    "http2_initial_window_size": 70000,
    "http2_max_concurrent_streams": 10,
    "http2_max_frame_size": 20000,
    "http2_max_header_list_size": 1000,
    "http_parser": "python",
    "http_protocols": "h1,h2",
    "post_request": lambda worker, request, environ, response: None,
    "pre_request": lambda worker, request: None,
    "protocol": "uwsgi",
    "proxy_allow_ips": "*",
    "proxy_protocol": "auto",
    "sendfile": True,
    "ssl_version": ssl.PROTOCOL_TLS_SERVER,
    "suppress_ragged_eofs": False,
    "threads": 2,
    "tmp_upload_dir": "/tmp",
    "uwsgi_allow_ips": "*",
    "websocket_max_message_size": 1,
}


def test_every_setting_of_gunicorn_stands_in_the_document_once():
    assert sorted([*HONOURED, *REFUSED]) == sorted(setting.name for setting in KNOWN_SETTINGS)


@pytest.mark.parametrize("name", REFUSED)
def test_setting_is_refused_with_the_documented_words(name):
    cfg = Config()
    settings.check(cfg)
    cfg.set(name, NOT_DEFAULT.get(name, True))
    with pytest.raises(ValueError, match=re.escape(f"{name}: {REFUSED[name]}")):
        settings.check(cfg)
