"""Gives every item back."""

import settings

from virtex import RequestHandler, http_server


class Echo(RequestHandler):
    def process_request(self, data):
        return data

    def run_inference(self, model_input):
        return model_input

    def process_response(self, model_output_item):
        return model_output_item


app = http_server(name="echo_service", handler=Echo(), **settings.of_service(batch=2500))
