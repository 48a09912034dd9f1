"""What tritonclient asks of the services of test_v2_clients.py where gevent has patched the program: 64 greenlets.

python tests/clients/greenlets.py HOST:PORT    in an environment with tritonclient
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402

import gevent  # noqa: E402
import numpy as np  # noqa: E402
import tritonclient.http as http  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

client = http.InferenceServerClient(sys.argv[1], concurrency=64, max_greenlets=64)


def given(array, binary=True):
    tensor = http.InferInput("input", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return [tensor]


def array_of(n):
    return np.full((1 + n % 12, 3), n, "f4")


def ask(n):
    coding = (None, "gzip", "deflate")[n % 3]
    for _ in range(3):
        got = client.infer("as f4", given(array_of(n), n % 2 == 0), response_compression_algorithm=coding)
        assert (got.as_numpy("output") == array_of(n)).all()
    return True


greenlets = [gevent.spawn(ask, n) for n in range(64)]
gevent.joinall(greenlets, timeout=60, raise_error=True)
assert all(greenlet.value for greenlet in greenlets)

waiting = [client.async_infer("as f4", given(array_of(n)), request_id=str(n)) for n in range(64)]
for n, request in enumerate(waiting):
    answer = request.get_result()
    assert (answer.as_numpy("output") == array_of(n)).all() and answer.get_response()["id"] == str(n)

wrong = [client.async_infer("as f4", given(np.zeros((1, 2 + n), "f4"))) for n in range(0, 8, 2)]
for request in wrong:
    try:
        request.get_result()
    except InferenceServerException as error:
        assert error.status() == "400" and "expected FP32 [n, 3]" in error.message(), error
    else:
        raise AssertionError("a wrong shape was taken")
