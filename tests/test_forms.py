"""Forms: what multipart/form-data becomes, and how what is none of it, or too much, is refused."""

import asyncio
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.asks import ask_asgi, ask_direct, run

from virtex import Limits, RequestHandler, http_server
from virtex.errors import RequestError
from virtex.service import forms
from virtex.service.forms import Form


class Sizes(RequestHandler):
    accepts = ("multipart/form-data",)

    def process_request(self, data):
        assert all(type(item) is bytes for item in data)
        return data

    def run_inference(self, batch):
        return [item.decode("latin-1") for item in batch]

    def process_response(self, row):
        return row


class Account:
    """What a body is charged to, on its own."""

    def __init__(self, most=1 << 30):
        self.parameters = None
        self.items = self.charged = 0
        self.most = most

    def admit_items(self, count, nbytes):
        self.items = count
        self.charged += nbytes
        if self.charged > self.most:
            raise RequestError(503, "no room")


def part(name="f", data=b"x", filename=None, more=b""):
    of = "" if filename is None else f'; filename="{filename}"'
    head = f'Content-Disposition: form-data; name="{name}"{of}\r\n'.encode()
    return b"--b\r\n" + head + more + b"\r\n" + data + b"\r\n"


def form(*parts, end=b"--b--\r\n"):
    return b"".join(parts) + end


def read(body, boundary="b", account=None):
    account = account or Account()
    return Form(boundary).items(body, account), account.parameters


HEADERS = [(b"content-type", b"multipart/form-data; boundary=b")]
A = part("f", b"AAA", "a.jpg", b"Content-Type: image/jpeg\r\n")
B = part("g", b"\r\n--\r\n", "b.jpg")


@pytest.fixture(params=[ask_asgi, ask_direct], ids=["asgi", "direct"])
def ask(request):
    return request.param


def kinds_of_body(body):
    """As bodies come: alone, in pieces, and in memory of a pool."""
    return body, bytearray(body), memoryview(bytearray(body))


@pytest.mark.parametrize("piece", [3, 17, 1 << 16])
def test_files_are_items_in_order_and_fields_are_parameters(piece, monkeypatch):
    monkeypatch.setattr(forms, "PIECE", piece)
    parts = part("top", b"3"), A, part("tag", "h\xe4".encode()), B, part("tag", b""), part("tag", b"z")
    for body in kinds_of_body(form(*parts)):
        files, parameters = read(body)
        assert files == [b"AAA", b"\r\n--\r\n"] and all(type(file) is bytes for file in files)
        assert parameters == {"top": "3", "tag": ["h\xe4", "", "z"]}


def test_a_form_reaches_the_handler_by_both_lanes_in_any_pieces(ask):
    app = http_server("sizes", Sizes())
    body = form(A, B, part("n", b"1"))
    asks = [ask(app, body, headers=HEADERS), ask(app, [body[:90], body[90:91], body[91:]], headers=HEADERS)]
    for answer in run(app, *asks):
        assert answer.json == {"data": ["AAA", "\r\n--\r\n"], "error": None}
    assert app.budget.held == 0


def test_a_file_input_of_a_browser_in_which_nothing_was_chosen_is_no_file():
    nothing = part("f", b"", "", b"Content-Type: application/octet-stream\r\n")
    assert read(form(nothing, A))[0] == [b"AAA"]
    assert read(form(part("f", b"", "empty.txt")))[0] == [b""]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "C:\\\\a\\\\b.jpg", "/etc/passwd", "h\xe4.jpg", "a;b", "%00.jpg", "x" * 3000]
)
def test_the_name_of_a_file_means_nothing(name):
    assert read(form(part("f", b"x", name))) == ([b"x"], {})


WRONG = {
    "nothing at all": (400, b"", "Unexpected end"),
    "no form": (400, b"hello", "Unexpected end"),
    "cut off in a file": (400, form(A, B)[:-14], "Unexpected end of multipart stream (parser closed), in part 2 or"),
    "cut off in a header": (400, A + b"--b\r\nContent-Disp", "in part 1 or behind it"),
    "no end": (400, form(A, end=b""), "Unexpected end"),
    "another boundary": (400, form(A).replace(b"--b", b"--c"), "Unexpected end"),
    "no file": (422, form(part("a", b"1"), part("b", b"2")), "a file at least, got 2 field(s) and no file"),
    "no part": (422, b"--b--\r\n", "a file at least, got 0 field(s) and no file"),
    "a field that is not UTF-8": (400, form(A, part("t", b"a\xff")), "part 2: expected the field 't' in UTF-8"),
    "a field without a name": (400, form(A, part("", b"a")), "part 2: a field without a name"),
    "no disposition": (400, b"--b\r\nContent-Type: a/b\r\n\r\nx\r\n--b--\r\n", "Missing Content-Disposition"),
    "another disposition": (400, form(A).replace(b"form-data", b"attachment"), "Wrong type"),
    "NUL in a filename": (400, form(part("f", b"x", "a\0.jpg")), "part 1: a control character"),
    "a header that is not UTF-8": (400, form(A).replace(b"a.jpg", b"\xff"), "failed to decode"),
    "a form within a form": (
        400,
        form(part("f", b"x", "a", b"Content-Type: multipart/mixed; boundary=c\r\n")),
        "part 1: a multipart/mixed within a form",
    ),
    "base64": (
        400,
        form(part("f", b"eA==", "a", b"Content-Transfer-Encoding: base64\r\n")),
        "send the bytes as they are",
    ),
    "a part's length is a lie": (400, form(part("f", b"x", "a", b"Content-Length: 7\r\n")), "Content-Length"),
    "a header of 1 MB": (
        413,
        form(part("f", b"x", "a", b"X: " + b"y" * (1 << 20) + b"\r\n")),
        "the limits are 1000 parts",
    ),
    "1 MB without a line's end": (413, b"--b\r\n" + b"y" * (1 << 20), "header length exceeded"),
    "9 headers": (413, form(part("f", b"x", "a", b"X: y\r\n" * 8)), "8 headers a part"),
    "10,000 parts": (413, form(*[part("f", b"x", "a")] * 10_000), "1000 parts"),
    "a field of 1 MB and a byte": (
        413,
        form(part("t", b"x" * ((1 << 20) + 1))),
        "more than 1048576 bytes: send it as a file",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_form_or_too_much_of_one_is_one_clear_refusal(case, ask):
    status, body, words = WRONG[case]
    app = http_server("sizes", Sizes())
    pieces = [body[at : at + 100_000] for at in range(0, len(body), 100_000)] or [b""]
    answer, pieced, good = run(
        app, ask(app, body, headers=HEADERS), ask(app, pieces, headers=HEADERS), ask(app, form(A), headers=HEADERS)
    )
    assert answer.status == pieced.status == status
    assert words in answer.error and answer.error.startswith("multipart/form-data")
    assert good.json["data"] == ["AAA"]
    assert app.budget.held == 0


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=" + b"a" * 71,
        b"multipart/form-data; boundary=" + b"a" * 200,
        b'multipart/form-data; boundary="a\xe4"',
        b"multipart/form-data; boundary=" + b"a" * 60_000,
        b"multipart/form-data" + b'; a="' * 12_000,
    ],
    ids=["none", "nothing", "quoted nothing", "71", "200", "not ASCII", "60000", "many quotes"],
)
def test_a_boundary_that_is_none_is_a_400_ahead_of_the_body(content_type, ask):
    app = http_server("sizes", Sizes())
    (answer,) = run(app, ask(app, b"", headers=[(b"content-type", content_type)]))
    assert answer.status == 400
    assert "boundary of 1 to 70 characters" in answer.error or "the limit is 512" in answer.error


def test_a_boundary_may_be_quoted_and_of_70_characters():
    for text, name in ((b'"a b"', "a b"), (b"x" * 70, "x" * 70)):
        app = http_server("sizes", Sizes())
        body = form(A).replace(b"--b", b"--" + name.encode())
        headers = [(b"content-type", b"Multipart/Form-Data; Boundary=" + text)]
        (answer,) = run(app, ask_direct(app, body, headers=headers))
        assert answer.json["data"] == ["AAA"]


def test_more_files_than_the_queue_holds_are_taken_when_it_is_not_full():
    app = http_server("sizes", Sizes(), max_queue_size=3)
    taken, refused = run(app, *(ask_direct(app, form(*[A] * 5), headers=HEADERS) for _ in range(2)))
    assert taken.json["data"] == ["AAA"] * 5
    assert refused.status == 503 and app.budget.held == 0


def test_parts_and_fields_are_charged_before_they_are_kept():
    account = Account()
    read(form(A, part("t", "\U00010000".encode() + b"x" * 1000)), account=account)
    assert account.charged > 2 * forms.PART_BYTES + 4000 and account.items == 1
    app = http_server("sizes", Sizes(), limits=Limits(max_bytes=200_000, body=100_000))
    full, good = run(
        app,
        ask_direct(app, form(*[part("t", b"")] * 600, A), headers=HEADERS),
        ask_direct(app, form(A), headers=HEADERS),
    )
    assert full.status == 503 and good.status == 200 and app.budget.held == 0


def test_a_large_file_is_copied_once_and_never_there_twice_beside_its_body():
    body = form(part("f", b"x" * (8 << 20), "a"))
    view = memoryview(bytearray(body))
    tracemalloc.start()
    try:
        (file,), _ = read(view)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(file) == 8 << 20
    assert most < 1.5 * len(file), "BytesIO has some room to grow"


def test_a_library_that_took_the_parsers_name_is_named(monkeypatch):
    import multipart

    monkeypatch.delattr(multipart, "PushMultipartParser")
    forms.load.cache_clear()
    with pytest.raises(ImportError, match="python-multipart before 0.0.13 hides it"):
        asyncio.run(http_server("sizes", Sizes()).startup())
    monkeypatch.undo()
    forms.load.cache_clear()


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\%', min_codepoint=32, exclude_categories=["Cc"]),
    min_size=1,
    max_size=9,
)
DATA = st.binary(max_size=60).filter(lambda data: b"--b" not in data)
ALPHABET = st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"--b", b"\r\n--b", b"x", b"\0", b"\xff", b": ", b"a"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, DATA, st.booleans()), min_size=1, max_size=8), st.integers(1, 40), st.booleans())
def test_any_form_comes_back_in_any_pieces(parts, piece, is_view):
    parts = [(name, data if is_file else data.hex().encode(), is_file) for name, data, is_file in parts]
    parts.append(("last", b"file", True))
    body = form(*(part(name, data, "n" if is_file else None) for name, data, is_file in parts))
    whole, forms.PIECE = forms.PIECE, piece
    try:
        files, parameters = read(memoryview(body) if is_view else body)
    finally:
        forms.PIECE = whole
    assert files == [data for _, data, is_file in parts if is_file]
    for name in {name for name, _, is_file in parts if not is_file}:
        texts = [data.decode() for other, data, is_file in parts if other == name and not is_file]
        assert parameters[name] == (texts if len(texts) > 1 else texts[0])


@settings(max_examples=300, deadline=None)
@given(st.lists(ALPHABET | st.binary(max_size=5), max_size=30), st.integers(0, 5), st.randoms(use_true_random=False))
def test_any_bytes_are_a_form_or_one_refusal(junk, where, chance):
    good = [A, part("t", b"1"), b"--b--\r\n", B, b"--b\r\n", b"Content-Disposition: form-data; name=a\r\n\r\n"]
    chance.shuffle(good)
    good.insert(where, b"".join(junk))
    body = b"".join(good)
    outcomes = []
    for shape in (body, memoryview(body)):
        try:
            outcomes.append(read(shape))
        except RequestError as error:
            assert error.status in (400, 413, 422)
            outcomes.append(error.status)
    assert outcomes[0] == outcomes[1]


def test_a_damaged_form_is_never_anything_but_a_form_or_a_refusal():
    chance = random.Random(5)
    body = form(A, part("t", b"1"), B)
    for _ in range(3000):
        damaged = bytearray(body)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            read(bytes(damaged))
        except RequestError as error:
            assert error.status in (400, 413, 422)
