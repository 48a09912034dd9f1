"""The handler that the page's services name and do not show: images in, arrays out."""

import numpy as np

from virtex import RequestHandler
from virtex.serial import decode_pil, encode_numpy


class Brightness(RequestHandler):
    """How bright each channel of an image is, float32."""

    def process_request(self, data):
        return [np.asarray(decode_pil(item)) for item in data]

    def run_inference(self, model_input):
        return np.stack([image.mean(axis=(0, 1), dtype=np.float32) for image in model_input])

    def process_response(self, model_output_item):
        return encode_numpy(model_output_item)


request_handler_x = Brightness()
