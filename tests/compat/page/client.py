from PIL import Image

from virtex import HttpClient, HttpMessage
from virtex.serial import decode_numpy, encode_pil

img = Image.open("path/to/image_file")  # repaired: was Image.load_img
msg = HttpMessage(data=[img])
msg.encode(encode_pil)

client = HttpClient("http://127.0.0.1:8081")  # repaired: was HttpClient()
resp = client.post(msg)
resp.decode(decode_numpy)

# The response data elements are here
prediction = resp.data
