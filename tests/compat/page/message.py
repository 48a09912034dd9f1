import numpy as np
import orjson as json

from virtex import HttpMessage
from virtex.serial import decode_numpy, encode_numpy

# Request data
req1 = np.array([[0.3, 0.1], [1.0, 0.5]], dtype=np.float32)
req2 = np.array([[0.0, 0.4], [0.0, 0.2]], dtype=np.float32)

# Request message
msg = HttpMessage(data=[req1, req2])

# Encode numpy array to bytestring
msg.encode(encode_numpy)

# Validate that the message is serializable
msg.validate()

# Get json string
msg_str = msg.json

# Recover original message
msg = HttpMessage(**json.loads(msg_str))

# Recover the original data
msg.decode(decode_numpy)
req1_decoded = msg.data[0]
req2_decoded = msg.data[1]
