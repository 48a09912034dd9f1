# server.py
from handler import request_handler_x  # repaired: was not said

from virtex.http import http_server  # repaired: was Server

app = http_server(
    name="service_x",
    handler=request_handler_x,
    max_batch_size=128,
    max_time_on_queue=0.01,
)
