"""Bodies that are no messages, and answers that are none: what `accepts` takes, and Content, by both lanes."""

import asyncio
import gc
import io
import shutil
import subprocess
from types import TracebackType

import numpy as np
import orjson
import pytest
from kit.asks import ask_asgi, ask_direct, run
from kit.servers import serving

from virtex import Content, HttpMessage, ItemError, Limits, RequestHandler, Tensor, TensorHandler, http_server
from virtex.errors import HandlerError
from virtex.serial import decode_numpy, decode_pil, encode_bytes, encode_numpy
from virtex.service.uploads import parameter

MESSAGES = ["application/json", "application/x-npy"]


class Tells(RequestHandler):
    """Answers with the type and the content of each item."""

    def __init__(self, *accepts):
        self.accepts = accepts

    def process_request(self, data):
        return data

    def run_inference(self, batch):
        return batch

    def process_response(self, item):
        return [type(item).__name__, item.decode("latin-1") if isinstance(item, bytes) else item]


class Draws(RequestHandler):
    """Answers with pictures, but where it is asked for a number."""

    accepts = ("image/*", "multipart/form-data")

    def process_request(self, data):
        return data

    def run_inference(self, batch):
        return batch

    def process_response(self, item):
        return item if isinstance(item, int) else Content(b"\x89PNG", "image/png")


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def of(kind, *more):
    return [(b"content-type", kind), *more]


def wants(accept):
    return (b"accept", accept)


JSON = b'{"data":[1]}'
TAKEN = {
    "as it is named": (("image/jpeg",), b"image/jpeg", b"\xff\xd8", ["bytes", "\xff\xd8"]),
    "in any case": (("Image/JPEG",), b"IMAGE/jpeg", b"x", ["bytes", "x"]),
    "with parameters": (("image/jpeg",), b"image/jpeg; q=1", b"x", ["bytes", "x"]),
    "by its first half": (("image/*",), b"image/png", b"x", ["bytes", "x"]),
    "by */*": (("*/*",), b"video/mp4", b"x", ["bytes", "x"]),
    "nothing of it": (("image/*",), b"image/png", b"", ["bytes", ""]),
    "octet-stream": (("application/octet-stream",), b"application/octet-stream", JSON, ["bytes", JSON.decode()]),
    "octet-stream by a wildcard": (("application/*",), b"application/octet-stream", b"x", ["bytes", "x"]),
    "what curl -d says": (("*/*",), b"application/x-www-form-urlencoded", b"a=1", ["bytes", "a=1"]),
    "text": (("text/plain",), b"text/plain", "h\xe4".encode(), ["str", "h\xe4"]),
    "text by a wildcard": (("text/*",), b"text/csv", b"a,b", ["str", "a,b"]),
    "text of latin-1": (("text/*",), b"text/plain; charset=ISO-8859-1", b"h\xe4", ["str", "h\xe4"]),
    "text of utf-16": (
        ("text/*",),
        b'text/plain; charset="utf-16le"',
        "h\U0001f600".encode("utf-16le"),
        ["str", "h\U0001f600"],
    ),
}
MESSAGE = {
    "JSON beside files": (("image/*",), b"application/json", JSON),
    "JSON in spite of */*": (("*/*",), b"application/json", JSON),
    "problem+json in spite of application/*": (("application/*",), b"application/problem+json", JSON),
    "no type in spite of */*": (("*/*",), b"", JSON),
    "octet-stream that is not taken": (("image/*",), b"application/octet-stream", JSON),
    "text that is not taken": (("image/*",), b"text/plain", JSON),
    "what curl -d says, as ever": ((), b"application/x-www-form-urlencoded", JSON),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_body_that_accepts_takes_is_one_item(case, ask):
    accepts, kind, body, told = TAKEN[case]
    app = http_server("tells", Tells(*accepts))
    whole, pieces = run(app, ask(app, body, headers=of(kind)), ask(app, [body[:1], body[1:]], headers=of(kind)))
    assert whole.json["data"] == pieces.json["data"] == [told]
    assert app.budget.held == 0


@pytest.mark.parametrize("case", MESSAGE)
def test_what_is_always_a_message_or_not_taken_is_read_as_one(case, ask):
    accepts, kind, body = MESSAGE[case]
    app = http_server("tells", Tells(*accepts))
    (answer,) = run(app, ask(app, body, headers=of(kind)))
    assert answer.json["data"] == [["int", 1]]


REFUSED = {
    "another type": (b"video/mp4", b"x", 415, "send one of application/json, application/x-npy, image/*, text/*"),
    "a charset that nobody knows": (b"text/plain; charset=klingon", b"x", 415, "charset 'klingon': send text in utf-8"),
    "a charset that is no text": (b"text/plain; charset=zip", b"x", 415, "send text in utf-8"),
    "a charset that there is not": (b"text/plain; charset=iso-8859-99", b"x", 415, "send text in utf-8"),
    "not UTF-8": (b"text/plain", b"a\xff", 400, "expected text in utf-8: invalid start byte at byte 1"),
    "not ASCII": (b"text/plain; charset=us-ascii", b"\xe4", 400, "expected text in us-ascii"),
    "half a character": (b"text/plain; charset=utf-16le", b"a", 400, "expected text in utf-16le: truncated data"),
    "a form that is not taken": (b"multipart/form-data; boundary=b", b"", 415, "send one of"),
    "a long type": (b"text/plain; a=" + b"x" * 2000, b"x", 400, "a Content-Type of 2014 bytes"),
    "an item that is JSON": (b"application/json", b"x", 400, "expected JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_other_body_is_one_clear_refusal(case, ask):
    kind, body, status, words = REFUSED[case]
    app = http_server("tells", Tells("image/*", "text/*"))
    (answer,) = run(app, ask(app, body, headers=of(kind)))
    assert answer.status == status and words in answer.error
    assert app.budget.held == 0


CURLS = b"application/x-www-form-urlencoded"  # what curl says of a file whose type nobody named


@pytest.mark.parametrize(
    ("kind", "body", "says_how"),
    [
        (CURLS, b"\xff\xd8\xff\xe0", True),
        (b"application/octet-stream", b"x", True),
        (CURLS, b' {"data": [1}', False),
        (CURLS, b' {"data": 1}', False),
        (b"application/json", b"\xff\xd8\xff\xe0", False),
    ],
    ids=["curl", "octets", "a slip", "no list", "said to be JSON"],
)
def test_a_file_whose_type_nobody_named_is_told_to_name_it(kind, body, says_how, ask):
    app = http_server("tells", Tells("image/*", "text/*"))
    wrong, right = run(app, ask(app, body, headers=of(kind)), ask(app, b'{"data": [1]}', headers=of(kind)))
    assert wrong.status == 400 and right.json["data"] == [["int", 1]]
    assert wrong.error.endswith("; what is no JSON needs its Content-Type: image/*, text/*") == says_how
    assert app.budget.held == 0


def test_a_refused_type_says_in_accept_what_is_taken():
    app = http_server("tells", Tells("image/png"))
    (answer,) = run(app, ask_direct(app, b"", headers=of(b"image/gif")))
    assert answer.headers[b"accept"] == b"application/json, application/x-npy, image/png"


@pytest.mark.parametrize(
    ("accepts", "error", "words"),
    [
        ("image/png", TypeError, "expected a tuple of media types, got 'image/png'"),
        (None, TypeError, "expected a tuple"),
        (("png",), ValueError, "got 'png'"),
        (("image/",), ValueError, "got 'image/'"),
        (("*/png",), ValueError, "got '\\*/png'"),
        (("*",), ValueError, "got '\\*'"),
        (("image/png; q=1",), ValueError, "got 'image/png; q=1'"),
        (("image/png, image/gif",), ValueError, "expected media types"),
        ((b"image/png",), ValueError, "expected media types"),
        ((1,), ValueError, "got 1"),
        (("application/json",), ValueError, "is always a message"),
        (("application/ld+json",), ValueError, "is always a message"),
        (("application/x-npy",), ValueError, "is always a message"),
    ],
    ids=str,
)
def test_accepts_that_mean_nothing_stop_the_start(accepts, error, words):
    class Odd(Tells):
        def __init__(self):
            self.accepts = accepts

    with pytest.raises(error, match=rf"^Odd.accepts: .*{words}"):
        asyncio.run(http_server("odd", Odd()).startup())


class Declared(TensorHandler):
    inputs = Tensor("f4", (2,))
    accepts = ("image/*",)

    def run_inference(self, batch):
        return batch


class Numbers(Tells):
    def process_request(self, data: np.ndarray):
        return data


def test_accepts_where_items_are_never_bytes_stop_the_start():
    for handler, words in (
        (Declared(), "means nothing on a TensorHandler"),
        (Numbers("image/*"), "expected one of them"),
    ):
        with pytest.raises(TypeError, match=words):
            asyncio.run(http_server("odd", handler).startup())
    with pytest.raises(TypeError, match="means nothing"):
        Declared().validate(HttpMessage(data=[[1, 2]]), strict=True)


class Named(TensorHandler):
    inputs = {"a": Tensor("f4")}
    outputs = {"a": Tensor("f4")}

    def run_inference(self, batch):
        return batch


class Encoded(RequestHandler):
    decode_item = decode_numpy
    encode_item = encode_numpy

    def run_inference(self, batch):
        return batch


@pytest.mark.parametrize(
    ("handler", "accepts", "answers"),
    [
        (Tells("image/*", "Text/Plain"), [*MESSAGES, "image/*", "text/plain"], MESSAGES),
        (Named(), MESSAGES[:1], MESSAGES[:1]),
        (Encoded(), MESSAGES, MESSAGES[:1]),
        (Tells, MESSAGES, MESSAGES),
    ],
    ids=["files", "names", "encoded", "a factory"],
)
def test_the_root_says_what_this_handler_takes_and_answers(handler, accepts, answers):
    app = http_server("it", handler)
    (told,) = run(app, ask_direct(app, method="GET"))
    assert (told.json["accepts"], told.json["answers"]) == (accepts, answers)


def test_what_came_before_the_handler_is_read_as_the_handler_wants_it():
    def make():
        return Tells("image/*", "text/plain")

    async def main():
        app = http_server("late", make)
        headers = [of(b"image/png"), of(b"text/plain"), of(b"video/mp4"), of(b"", wants(b"video/mp4"))]
        bodies = b"P", b"T", b"V", JSON
        answers = await asyncio.gather(*(ask_direct(app, b, headers=h) for b, h in zip(bodies, headers, strict=True)))
        again = await ask_direct(app, b"P", headers=headers[0])
        await app.shutdown()
        return [(answer.status, answer.json["data"]) for answer in (*answers, again)]

    picture = (200, [["bytes", "P"]])
    assert asyncio.run(main()) == [picture, (200, [["str", "T"]]), (415, []), (406, []), picture]


def test_an_item_has_memory_of_its_own_and_is_charged():
    kept = []

    class Keeps(Tells):
        def process_request(self, data):
            kept.extend(data)
            return data

    app = http_server("keeps", Keeps("image/*", "text/*"), limits=Limits(max_bytes=1_000_000, body=900_000))

    async def main():
        await app.startup()
        head = await_head(app, b"image/png", 300_000)
        view = head.buffer(300_000)
        view[:] = b"a" * 300_000
        head.charge(300_000)
        answer = head.complete()
        view[:] = b"b" * 300_000
        assert app.budget.held == 300_000
        await answer
        wide = await ask_direct(app, "\U0001f600".encode() + b"x" * 800_000, headers=of(b"text/plain"))
        assert wide.status == 503, "a str of it takes four times as much"
        await app.shutdown()

    asyncio.run(main())
    assert type(kept[0]) is bytes and kept[0] == b"a" * 300_000
    assert app.budget.held == 0


def await_head(app, kind, length):
    from virtex.service.seam import Head

    return app.open(Head("POST", "/", of(kind), length, None), app._clock())


# ---- Content


@pytest.mark.parametrize(
    "accept",
    [None, b"*/*", b"image/*", b"image/png", b"text/html, image/png;q=0.1", b"IMAGE/PNG", b"image/jpeg, */*;q=0.1"],
)
def test_a_content_is_the_answer_where_the_client_takes_its_type(accept, ask):
    app = http_server("draws", Draws())
    (answer,) = run(app, ask(app, b"x", headers=of(b"image/x", *([] if accept is None else [wants(accept)]))))
    assert (answer.status, answer.headers[b"content-type"], answer.body) == (200, b"image/png", b"\x89PNG")


@pytest.mark.parametrize(
    "accept", [b"application/json", b"image/jpeg", b"image/png;q=0", b"*/*, image/*;q=0", b"text/html"]
)
def test_a_content_that_the_client_does_not_take_is_a_406(accept, ask):
    app = http_server("draws", Draws())
    (answer,) = run(app, ask(app, b"x", headers=of(b"image/x", wants(accept))))
    assert answer.status == 406 and "this answer is of type image/png" in answer.error


def test_who_takes_pictures_only_gets_a_406_for_anything_else_and_errors_as_json(ask):
    app = http_server("draws", Draws())
    number, wrong = run(
        app, ask(app, JSON, headers=[wants(b"image/png")]), ask(app, b"x", headers=[wants(b"image/png")])
    )
    assert number.status == 406 and "the answers are one of application/json" in number.error
    assert wrong.status == 400 and wrong.error.startswith("expected JSON")


def test_several_items_of_which_one_is_a_content_are_the_clients_fault(ask):
    app = http_server("draws", Draws())
    form = [(b"content-type", b"multipart/form-data; boundary=b")]
    files = b"".join(b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nx\r\n' for _ in range(2))
    several, mixed, numbers = run(
        app,
        ask(app, files + b"--b--\r\n", headers=form),
        ask(app, b'{"data":[1,"draw"]}'),
        ask(app, b'{"data":[1,2]}'),
    )
    assert several.status == mixed.status == 422
    assert several.json["index"] == 0 and mixed.json["index"] == 1
    assert "its answer is of type image/png: send such items one by one" in mixed.error
    assert numbers.json["data"] == [1, 2]


def test_encode_item_and_a_tensor_handler_may_give_a_content(ask):
    class Encodes(Encoded):
        encode_item = lambda row: Content(encode_numpy(row).encode(), "text/x-npy")  # noqa: E731

    class Paints(TensorHandler):
        inputs = Tensor("f4", (2,))

        def run_inference(self, batch):
            return batch

        def process_response(self, row):
            return Content(row.tobytes(), "application/octet-stream")

    for handler, kind in ((Encodes(), b"text/x-npy"), (Paints(), b"application/octet-stream")):
        app = http_server("it", handler)
        body = orjson.dumps({"data": [encode_numpy(np.ones(2, "f4"))]})
        (answer,) = run(app, ask(app, body, headers=[wants(kind)]))
        assert answer.status == 200 and answer.headers[b"content-type"] == kind


@pytest.mark.parametrize(
    ("body", "kind", "error", "words"),
    [
        ("text", "text/plain", TypeError, "expected bytes, got str: encode it"),
        (None, "text/plain", TypeError, "expected bytes, got NoneType"),
        (b"", None, TypeError, "expected a media type, got NoneType"),
        (b"", b"text/plain", TypeError, "expected a media type, got bytes"),
        (b"", "", ValueError, "as image/png"),
        (b"", "png", ValueError, "as image/png"),
        (b"", "image/png\r\nSet-Cookie: a=b", ValueError, "as image/png"),
        (b"", "image/png\n", ValueError, "as image/png"),
        (b"", "image/*;a", ValueError, "as image/png"),
        (b"", "text/plain; charset=\xe4", ValueError, "as image/png"),
        (b"", 'text/plain; a="\n"', ValueError, "as image/png"),
    ],
    ids=str,
)
def test_a_content_that_can_not_be_sent_is_an_error_where_it_is_made(body, kind, error, words):
    with pytest.raises(error, match=words):
        Content(body, kind)


def test_a_content_is_what_its_memory_was():
    memory = bytearray(b"ab")
    content = Content(memory, 'text/csv; charset=utf-8; header="a b"')
    memory[:] = b"xy"
    assert content.body == b"ab" and repr(content) == "Content(2 bytes, 'text/csv; charset=utf-8; header=\"a b\"')"


# ---- validate


def test_validate_takes_files_and_gives_contents():
    answer = Draws().validate(HttpMessage(data=[b"x"]), strict=True)
    assert answer.data[0].type == "image/png"
    with pytest.raises(ItemError, match="item 0: its answer is of type image/png"):
        Draws().validate(HttpMessage(data=[b"x", b"y"]), strict=True)
    assert Tells("image/*").validate(HttpMessage(data=[b"a", b"b"])).data == [["bytes", "a"], ["bytes", "b"]]
    with pytest.raises(HandlerError, match=r"gave a bytes that can't be sent: .*call encode_bytes\(value\)"):
        Tells().validate(HttpMessage(data=[b"a"]), strict=True)


# ---- one handler, whatever is sent


def picture(kind="PNG"):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (3, 2), (255, 0, 0)).save(file, kind)
    return file.getvalue()


class Sees(RequestHandler):
    accepts = ("image/*", "multipart/form-data")
    decode_item = decode_pil

    def process_request(self, data):
        return data

    def run_inference(self, batch):
        return [list(image.size) for image in batch]

    def process_response(self, row):
        return row


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_a_picture_reaches_the_same_handler_as_file_form_or_text(kind, ask):
    from PIL import Image

    from virtex.serial import encode_pil

    file, app = picture(kind), http_server("sees", Sees())
    form = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n' + file + b"\r\n--b--\r\n"
    text = encode_pil(Image.open(io.BytesIO(file)).copy())
    answers = run(
        app,
        ask(app, file, headers=of(b"image/" + kind.lower().encode())),
        ask(app, form, headers=of(b"multipart/form-data; boundary=b")),
        ask(app, orjson.dumps({"data": [text]})),
    )
    assert [answer.json["data"] for answer in answers] == [[[3, 2]]] * 3


def test_what_is_no_picture_is_a_422(ask):
    app = http_server("sees", Sees())
    bad = run(app, *(ask(app, body, headers=of(b"image/png")) for body in (b"", b"\xff\xd8", b"hello", picture()[:50])))
    assert [answer.status for answer in bad] == [422] * 4


class Sums(RequestHandler):
    accepts = ("application/octet-stream", "multipart/form-data")

    def process_request(self, data):
        return np.stack([decode_numpy(item) for item in data])

    def run_inference(self, batch):
        return batch.sum(1)

    def process_response(self, row):
        return row


def test_an_array_reaches_the_same_handler_as_npy_file_or_text(ask):
    app = http_server("sums", Sums())
    file = io.BytesIO()
    np.save(file, np.float32([1, 2, 3]))
    npy = file.getvalue()
    answers = run(
        app,
        ask(app, npy + npy, headers=of(b"application/x-npy")),
        ask(app, npy, headers=of(b"application/octet-stream")),
        ask(app, orjson.dumps({"data": [encode_numpy(np.float32([1, 2, 3])), encode_bytes(npy)]})),
        ask(app, npy + npy, headers=of(b"application/octet-stream")),
    )
    assert [answer.json["data"] for answer in answers[:3]] == [[6, 6], [6], [6, 6]]
    assert answers[3].status == 422 and "expected one .npy document" in answers[3].error


def test_parameters_of_a_content_type():
    kind = b'text/plain; A=1 ; b="x; c=3"; d="\\"e"; f='
    assert [parameter(kind, name) for name in "abcdfg"] == ["1", "x; c=3", "", '"e', "", ""]


SERVICE = """
from virtex import Content, RequestHandler, http_server
from virtex.serial import decode_pil

class Sees(RequestHandler):
    accepts = ("image/*", "multipart/form-data")
    decode_item = decode_pil

    def process_request(self, data):
        return data

    def run_inference(self, images):
        return [(image, len(images)) for image in images]

    def process_response(self, row):
        image, _ = row
        return Content(image.tobytes(), "application/x-raw") if image.width == 3 else list(image.size)

app = http_server(name="sees", handler=Sees)
"""


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_sends_pictures_and_gets_bytes_through_a_real_server(tmp_path):
    from PIL import Image

    from virtex import HttpClient
    from virtex.serial import encode_pil

    Image.new("RGB", (300, 200)).save(tmp_path / "x.jpg")
    (tmp_path / "small.png").write_bytes(picture())
    (tmp_path / "large.bmp").write_bytes(b"BM" + b"x" * 300_000)

    with serving("gunicorn", SERVICE) as server:
        url = f"http://127.0.0.1:{server.port}/"

        def curl(*arguments):
            line = ["curl", "-sS", "-w", "\n%{http_code} %{content_type}", "--max-time", "20", url, *arguments]
            body, _, end = subprocess.run(line, capture_output=True, check=True, cwd=tmp_path).stdout.rpartition(b"\n")
            return body, end.decode()

        sizes = b'{"data":[[300,200]],"error":null}', "200 application/json"
        assert curl("-H", "Content-Type: image/jpeg", "--data-binary", "@x.jpg") == sizes
        assert curl("-F", "file=@x.jpg") == sizes
        assert curl("-F", "top=3", "-F", "file=@x.jpg;filename=../../x", "-F", "more=@x.jpg")[0].count(b"300") == 2
        assert curl("-H", "Transfer-Encoding: chunked", "-F", "file=@x.jpg") == sizes
        raw = b"\xff\0\0" * 6, "200 application/x-raw"
        assert curl("-F", "file=@small.png") == raw
        assert curl("-F", "file=@small.png", "-H", "Accept: application/json")[1] == "406 application/json"
        assert curl("-F", "top=3")[1] == "422 application/json"
        assert curl("-F", "file=@large.bmp")[1] == "422 application/json"
        assert curl("-H", "Content-Type: multipart/form-data", "-d", "x")[1] == "400 application/json"
        with HttpClient(url) as client:
            assert client.post(HttpMessage(data=[encode_pil(Image.new("L", (5, 4)))])).data == [[5, 4]]
            text = encode_pil(Image.new("L", (3, 1)))
            error = client.post(HttpMessage(data=[text])).error
        assert error == "Accept 'application/json': this answer is of type application/x-raw", "a client wants messages"


def test_a_client_names_the_type_of_an_answer_that_is_no_message():
    from virtex.posting.outcomes import Outcome, message_of

    status, message = message_of("it", None, Outcome(200, [(b"content-type", b"image/png")], b"PNG"))
    assert status == 200
    assert message.error == "it: expected a message, got status 200 with 3 bytes of type image/png: 'PNG'"


def test_what_is_refused_again_and_again_is_not_kept(ask):
    async def main():
        app = http_server("echo", Tells)
        await app.startup()
        statuses = {(await ask(app, JSON, headers=[wants(b"image/png")])).status for _ in range(50)}
        kept = sum(type(one) is TracebackType for one in gc.get_objects())
        await app.shutdown()
        return statuses, kept

    gc.collect()
    before = sum(type(one) is TracebackType for one in gc.get_objects())
    statuses, kept = asyncio.run(main())
    assert statuses == {406} and kept - before < 50
