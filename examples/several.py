"""Two models in one app, each below its name: the digits of images.py, and the patients of tables.py.

`make several` asks both. To ask them yourself, from another shell, with the digit.jpg that images.py says how to draw:

    python examples/several.py --serve
    curl localhost:8000/
    curl localhost:8000/images -F file=@digit.jpg
    curl localhost:8000/tables -d '{"data": [[0.04, 0.05, 0.06, 0.02, -0.04, -0.03, -0.04, 0, 0.02, -0.02]]}'

In this folder `gunicorn several:app -k virtex.VirtexWorker` serves them, too.
"""

from __future__ import annotations

import sys
from urllib.parse import urljoin

import images
import tables
from serving import run

from virtex import HttpClient, HttpMessage, Services

app = Services(images.app, tables.app)


def show(client: HttpClient) -> None:
    """Ask one after the other."""
    images.show(client)
    answer = client.post(urljoin(str(client.url), "/tables"), HttpMessage(data=[tables.ROW]))
    print(f"progress {answer.data[0]:.1f} of one patient")


if __name__ == "__main__":
    sys.exit(run("several:app", __doc__, show, images.load, rate=200, serve=app.run, path="/images/"))
