from handler import request_handler_x  # repaired: was not said

from virtex import http_server

app = http_server(
    name="service_x",
    handler=request_handler_x,
    prom_host="127.0.0.1",
    prom_port=9090,
    prom_mode="scrape",
    prom_push_interval=0.01,
)
