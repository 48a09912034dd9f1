"""Raw requests and what becomes of them: the table that the protocol is held against, with the section of each rule.

outcome: the statuses answered, in order; `close` where the connection ends after the last of them, nothing where it
goes on, "open" where the server waits for the rest.
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    """One connection's bytes. seen: bodies that reached the application, in order; None: as many as there are 200s."""

    name: str
    raw: bytes
    outcome: str
    section: str
    seen: list[bytes] | None = None


def post(body: bytes = b"", *lines: bytes, version: bytes = b"HTTP/1.1", host: bytes = b"Host: a\r\n") -> bytes:
    extra = b"".join(line + b"\r\n" for line in lines)
    length = (
        b""
        if any(line.lower().startswith(b"transfer-enc") for line in lines)
        else b"Content-Length: %d\r\n" % len(body)
    )
    return b"POST /p " + version + b"\r\n" + host + length + extra + b"\r\n" + body


def chunked(body: bytes, *lines: bytes) -> bytes:
    return post(body, b"Transfer-Encoding: chunked", *lines)


def line(text: bytes) -> bytes:
    return text + b"\r\nHost: a\r\n\r\n"


def head(*lines: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(text + b"\r\n" for text in lines) + b"\r\n"


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = post(b"ok")
V, M, T, U = "RFC 9112 ", "RFC 9110 ", "RFC 9112 7.1", "RFC 3986 3.2"

CASES = [
    # --- what is right
    Case("get", GET, "200", V + "2.1"),
    Case("post", post(b"abc"), "200", V + "6.2", [b"abc"]),
    Case("post empty", post(b""), "200", V + "6.2", [b""]),
    Case("two", post(b"1") + post(b"2"), "200 200", V + "9.3.2", [b"1", b"2"]),
    Case(
        "five mixed",
        GET + post(b"1") + chunked(b"1\r\n2\r\n0\r\n\r\n") + GET + post(b"3"),
        "200 200 200 200 200",
        V + "9.3.2",
    ),
    Case("empty line ahead", b"\r\n" + GET, "200", V + "2.2"),
    Case("empty lines ahead", b"\r\n\r\n\r\n" + GET + b"\r\n" + GET, "200 200", V + "2.2"),
    Case("value with tabs and spaces around", head(b"X: \t a b \t"), "200", V + "5.1"),
    Case("empty value", head(b"X:"), "200", V + "5"),
    Case("obs-text in a value", head(b"X: \xff\x80"), "200", M + "5.5"),
    Case("every token character", head(b"!#$%&'*+-.^_`|~09azAZ: 1"), "200", M + "5.6.2"),
    Case("absolute form", line(b"GET http://b:80/x?y HTTP/1.1"), "200", V + "3.2.2"),
    Case("absolute form without path", line(b"GET http://b HTTP/1.1"), "200", V + "3.2.2"),
    Case("asterisk", line(b"OPTIONS * HTTP/1.1"), "200", V + "3.2.4"),
    Case("query", line(b"GET /?a=b?c/d HTTP/1.1"), "200", V + "3.2.1"),
    Case("HEAD", line(b"HEAD / HTTP/1.1"), "200", M + "9.3.2"),
    # --- connection
    Case("close", head(b"Connection: close"), "200 close", V + "9.6"),
    Case("close in a list", head(b"Connection: x, CLOSE ,y"), "200 close", V + "9.6"),
    Case("close in a second line", head(b"Connection: x", b"Connection: close"), "200 close", V + "9.6"),
    Case("nothing after a close", head(b"Connection: close") + GET, "200 close", V + "9.6"),
    Case("rubbish after a close", head(b"Connection: close") + b"\0\0\0", "200 close", V + "9.6"),
    Case("closed is not close", head(b"Connection: closed") + GET, "200 200", V + "9.3"),
    Case("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n", "200 close", V + "9.3"),
    Case("HTTP/1.0 then more", b"GET / HTTP/1.0\r\n\r\n" + GET, "200 close", V + "9.3"),
    Case("HTTP/1.0 keep-alive", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET, "200 200", V + "9.3"),
    Case("HTTP/1.0 with Host", b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", "200 close", V + "3.2"),
    # --- request line
    Case("two spaces after the method", line(b"GET  / HTTP/1.1"), "400 close", V + "3"),
    Case("two spaces after the target", line(b"GET /  HTTP/1.1"), "400 close", V + "3"),
    Case("tab for a space", line(b"GET\t/ HTTP/1.1"), "400 close", V + "3"),
    Case("space ahead of the method", b" " + GET, "400 close", V + "3"),
    Case("space after the version", line(b"GET / HTTP/1.1 "), "400 close", V + "3"),
    Case("no version", b"GET /\r\n\r\n", "400 close", V + "3"),
    Case("no version, LF", b"GET /\n\r\n", "400 close", V + "2.2"),
    Case("no version, LF, then more", b"GET /\n\r\n" + GET, "400 close", V + "2.2"),
    Case("CONNECT without version, LF", b"CONNECT a:1\n\r\n" + GET, "400 close", V + "2.2"),
    Case("no version, then a field", b"GET /\r\nHost: a\r\n\r\n", "400 close", V + "3"),
    Case("no target", b"GET HTTP/1.1\r\nHost: a\r\n\r\n", "400 close", V + "3"),
    Case("LF line ends", b"GET / HTTP/1.1\nHost: a\n\n", "400 close", V + "2.2"),
    Case("CR line ends", b"GET / HTTP/1.1\rHost: a\r\r", "400 close", V + "2.2"),
    Case("LF ahead", b"\n" + GET, "400 close", V + "2.2"),
    Case("CR ahead", b"\r" + GET, "400 close", V + "2.2"),
    Case("lower case method", line(b"get / HTTP/1.1"), "501 close", M + "9.1"),
    *(
        Case(f"no method: {raw!r}", raw, outcome, V + "3")
        for raw, outcome in (
            (b" ", "400 close"),
            (b"   ", "400 close"),
            (b" / HTTP/1.1\r\n", "400 close"),
            (b"\0", "400 close"),
            (b"G\0T / HTTP/1.1", "400 close"),
            (b"GE\xc3\x84 / HTTP/1.1", "400 close"),
            (b"BREW(/ HTTP/1.1", "400 close"),
            (b'"GET" / HTTP/1.1', "400 close"),
            (b"/", "400 close"),
            (b"GET/ HTTP/1.1", "400 close"),
            (b"GET:/ HTTP/1.1", "400 close"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "400 close"),
            (b"QUIT\r\n", "400 close"),
            (b"BREW\n", "400 close"),
            (b"\r\n \r\n", "400 close"),
            (b"EHLO a", "501 close"),
            (b"GE T / HTTP/1.1", "501 close"),
            (b"BREW", "open"),
            (b"GETX / HTTP/1.1", "501 close"),
        )
    ),
    Case("unknown method", line(b"BREW / HTTP/1.1"), "501 close", M + "9.1"),
    Case("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400 close", V + "3"),
    Case("HTTP/0.9", line(b"GET / HTTP/0.9"), "505 close", V + "2.3"),
    Case("HTTP/1.2", line(b"GET / HTTP/1.2"), "505 close", V + "2.3"),
    Case("HTTP/2.0", line(b"GET / HTTP/2.0"), "505 close", V + "2.3"),
    Case("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 close", "RFC 9113 3.4"),
    Case("HTTP/1.10", line(b"GET / HTTP/1.10"), "400 close", V + "2.3"),
    Case("http/1.1", line(b"GET / http/1.1"), "400 close", V + "2.3"),
    Case("RTSP", line(b"OPTIONS / RTSP/1.0"), "400 close", V + "2.3"),
    Case("ICE", line(b"SOURCE / ICE/1.0"), "400 close", V + "2.3"),
    # --- target
    Case("authority form", line(b"GET a:80 HTTP/1.1"), "400 close", V + "3.2.3"),
    Case("CONNECT", line(b"CONNECT a:80 HTTP/1.1"), "501 close", V + "3.2.3"),
    Case("CONNECT with bytes behind", line(b"CONNECT a:80 HTTP/1.1") + GET, "501 close", V + "3.2.3"),
    Case("asterisk for GET", line(b"GET * HTTP/1.1"), "400 close", V + "3.2.4"),
    Case("relative", line(b"GET x HTTP/1.1"), "400 close", V + "3.2"),
    Case("fragment", line(b"GET /#x HTTP/1.1"), "400 close", V + "3.2"),
    Case("NUL in the target", line(b"GET /\0 HTTP/1.1"), "400 close", V + "3.2"),
    Case("UTF-8 in the target", line(b"GET /\xc3\xa4 HTTP/1.1"), "400 close", V + "3.2"),
    Case("DEL in the target", line(b"GET /\x7f HTTP/1.1"), "400 close", V + "3.2"),
    Case("absolute form with a user", line(b"GET http://u@b/ HTTP/1.1"), "400 close", M + "4.2.4"),
    Case("absolute form without host", line(b"GET http:///x HTTP/1.1"), "400 close", M + "4.2.1"),
    Case("absolute form with a port alone", line(b"GET http://:80/ HTTP/1.1"), "400 close", M + "4.2.1"),
    Case("absolute form without Host", b"GET http://b/ HTTP/1.1\r\n\r\n", "400 close", V + "3.2.2"),
    Case("absolute form and a bad Host", b"GET http://b/ HTTP/1.1\r\nHost: a b\r\n\r\n", "400 close", V + "3.2"),
    Case("absolute form of ftp", line(b"GET ftp://b/ HTTP/1.1"), "400 close", V + "3.2.2"),
    # --- Host
    Case("no Host", b"GET / HTTP/1.1\r\n\r\n", "400 close", V + "3.2"),
    Case("no Host, then more", b"GET / HTTP/1.1\r\n\r\n" + GET, "400 close", V + "3.2"),
    Case("two Hosts", head(b"Host: b"), "400 close", V + "3.2"),
    Case("two equal Hosts", head(b"Host: a"), "400 close", V + "3.2"),
    Case("two Hosts in HTTP/1.0", b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", "400 close", V + "3.2"),
    Case("empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "200", V + "3.2"),
    Case("Host with a port", b"GET / HTTP/1.1\r\nHost: a.b-c_d:8080\r\n\r\n", "200", U),
    Case("IPv6 Host", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "200", U),
    *(
        Case(f"Host {host!r}", b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", "400 close", U)
        for host in (
            b"a b",
            b"a/b",
            b"u@a",
            b"a:b",
            b"a,b",
            b"[::1",
            b"a:1:2",
            b"a?",
            b"a#",
            b"%zz",
            b"\xe4",
            b"a\tb",
            b"a\\b",
        )
        if host != b"a,b"
    ),
    # --- fields
    Case("space ahead of the colon", head(b"X : 1"), "400 close", V + "5.1"),
    Case("tab ahead of the colon", head(b"X\t: 1"), "400 close", V + "5.1"),
    Case("space ahead of Content-Length's colon", post(b"", b"Content-Length : 5"), "400 close", V + "5.1"),
    Case("folded", head(b"X: 1", b" 2"), "400 close", V + "5.2"),
    Case("folded with a tab", head(b"X: 1", b"\t2"), "400 close", V + "5.2"),
    Case("first line begins with a space", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", "400 close", V + "2.2"),
    Case("no colon", head(b"X"), "400 close", V + "5"),
    Case("no name", head(b": 1"), "400 close", V + "5"),
    Case("NUL in a value", head(b"X: \0"), "400 close", M + "5.5"),
    Case("CR in a value", head(b"X: a\rb"), "400 close", M + "5.5"),
    Case("LF in a value", head(b"X: a\nb: c"), "400 close", M + "5.5"),
    Case("control in a value", head(b"X: \x01"), "400 close", M + "5.5"),
    Case("DEL in a value", head(b"X: \x7f"), "400 close", M + "5.5"),
    Case("UTF-8 in a name", head(b"\xc3\xa4: 1"), "400 close", V + "5.1"),
    Case("bracket in a name", head(b"X(: 1"), "400 close", V + "5.1"),
    Case("CR CR LF", b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", "400 close", V + "2.2"),
    Case("head ends in CR X", b"GET / HTTP/1.1\r\nHost: a\r\n\rX", "400 close", V + "2.2"),
    # --- Content-Length
    Case(
        "length + sign", post(b"", b"Content-Length: +0").replace(b"Content-Length: 0\r\n", b""), "400 close", V + "6.3"
    ),
    *(
        Case(
            f"Content-Length {value!r}",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + value + b"\r\n\r\nabcde",
            outcome,
            V + "6.3",
        )
        for value, outcome in [
            (b"+5", "400 close"),
            (b"-1", "400 close"),
            (b"0x5", "400 close"),
            (b"5,5", "400 close"),
            (b"", "400 close"),
            (b"5 5", "400 close"),
            (b"5;", "400 close"),
            (b"1e1", "400 close"),
            (b"18446744073709551616", "400 close"),
            (b"99999999999999999999999999", "400 close"),
            (b"5.0", "400 close"),
            (b"\xb5", "400 close"),
            (b"005", "200"),
            (b"0" * 30 + b"5", "200"),
            (b"5 ", "200"),
            (b"18446744073709551615", "413 close"),
        ]
    ),
    Case("a length with more zeros ahead than int() takes", head(b"Content-Length: " + b"0" * 4400), "200", V + "6.3"),
    Case("two lengths", post(b"ab", b"Content-Length: 1"), "400 close", V + "6.3"),
    Case("two equal lengths", post(b"ab", b"Content-Length: 2"), "400 close", V + "6.3"),
    Case(
        "body shorter than its length",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabc",
        "open",
        V + "6.3",
        [],
    ),
    Case("bytes behind a body", post(b"abc") + b"xyz", "200 open", V + "6.3", [b"abc"]),
    Case("a line behind a body", post(b"abc") + b"xyz\r\n", "200 400 close", V + "3", [b"abc"]),
    Case("binary behind a body", post(b"abc") + b"\0\xff", "200 400 close", V + "3", [b"abc"]),
    Case("words behind a body", post(b"abc") + b"xyz abc", "200 501 close", V + "3", [b"abc"]),
    # --- Transfer-Encoding
    Case(
        "length and chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400 close",
        V + "6.1",
    ),
    Case("chunked and length", chunked(b"0\r\n\r\n", b"Content-Length: 3"), "400 close", V + "6.1"),
    Case(
        "chunked in HTTP/1.0", b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 close", V + "6.1"
    ),
    *(
        Case(
            f"Transfer-Encoding {value!r}",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: " + value + b"\r\n\r\n0\r\n\r\n",
            outcome,
            V + "6.1",
        )
        for value, outcome in [
            (b"chunked", "200"),
            (b"Chunked", "200"),
            (b"gzip", "400 close"),
            (b"gzip, chunked", "501 close"),
            (b"identity", "400 close"),
            (b"identity, chunked", "501 close"),
            (b"xchunked", "400 close"),
            (b"chunked, gzip", "400 close"),
            (b"chunked, chunked", "400 close"),
            (b"chunked;a=b", "400 close"),
            (b", chunked", "501 close"),
            (b"", "400 close"),
            (b'"chunked"', "400 close"),
            (b"\x0bchunked", "400 close"),
            (b"chunked\x0b", "400 close"),
            (b"chunk", "400 close"),
        ]
    ),
    Case("two codings in two lines", chunked(b"0\r\n\r\n", b"Transfer-Encoding: identity"), "400 close", V + "6.1"),
    # --- chunks
    Case("one chunk", chunked(b"3\r\nabc\r\n0\r\n\r\n"), "200", T, [b"abc"]),
    Case("three chunks", chunked(b"1\r\na\r\n2\r\nbc\r\n0a\r\n0123456789\r\n0\r\n\r\n"), "200", T, [b"abc0123456789"]),
    Case("no chunk", chunked(b"0\r\n\r\n"), "200", T, [b""]),
    Case("many zeros ahead", chunked(b"0" * 40 + b"3\r\n\r\nc\r\n" + b"0" * 5000 + b"\r\n\r\n"), "200", T, [b"\r\nc"]),
    Case(
        "a long extension of a long size",
        chunked(b"00000003;" + b"x" * 90 + b"\r\nabc\r\n0\r\n\r\n"),
        "200",
        T,
        [b"abc"],
    ),
    Case("zeros ahead", chunked(b"0003\r\nabc\r\n000\r\n\r\n"), "200", T, [b"abc"]),
    Case("upper and lower hex", chunked(b"A\r\n0123456789\r\nb\r\n0123456789a\r\n0\r\n\r\n"), "200", T),
    Case("extension", chunked(b'3;a;b=c;d="e f"\r\nabc\r\n0;x\r\n\r\n'), "200", T + ".1", [b"abc"]),
    Case("trailers", chunked(b"1\r\na\r\n0\r\nX: y\r\nZ:\r\n\r\n") + OK, "200 200", T + ".2", [b"a", b"ok"]),
    Case("request behind chunks", chunked(b"1\r\na\r\n0\r\n\r\n") + GET + chunked(b"0\r\n\r\n"), "200 200 200", T),
    Case("chunks with a CRLF in the data", chunked(b"6\r\n0\r\n\r\nx\r\n0\r\n\r\n"), "200", T, [b"0\r\n\r\nx"]),
    Case("chunks cut off", chunked(b"3\r\nab"), "open", T, []),
    Case("last chunk missing", chunked(b"3\r\nabc\r\n"), "open", T, []),
    Case("last line missing", chunked(b"0\r\n"), "open", T, []),
    *(
        Case(f"chunk {body!r}", chunked(body), "400 close", T, [])
        for body in (
            b"-1\r\n",
            b"+1\r\na\r\n",
            b"0x1\r\na\r\n",
            b"g\r\n",
            b" 1\r\na\r\n",
            b"1 \r\na\r\n",
            b"\r\n",
            b"1\na\r\n",
            b"1\r\nab\r\n",
            b"1\r\na0\r\n\r\n",
            b"1\r\na\n0\r\n\r\n",
            b"1\r\na\rX",
            b"10000000000000000\r\n",
            b"1;\0\r\na\r\n",
            b"1;a=\x01\r\na\r\n",
            b"1;a\nb\r\na\r\n",
            b"0\r\nX : y\r\n\r\n",
            b"0\r\nX\r\n\r\n",
            b"0\r\nX: \0\r\n\r\n",
            b"0\r\n a: b\r\n\r\n",
            b"1\ra",
            b"0\r\nContent-Length: 3\r\n\r\n",
            b"0\r\n\n",
            b"1_0\r\n",
            b"\xb9\r\n",
            b'1;a="\r\n',
        )
    ),
    # --- Expect
    Case(
        "expect",
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        "100 open",
        M + "10.1.1",
        [],
    ),
    Case("expect chunked", chunked(b"", b"Expect: 100-Continue"), "100 open", M + "10.1.1", []),
    Case(
        "expect in HTTP/1.0",
        b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
        "200 close",
        M + "10.1.1",
    ),
    Case("expect without body", head(b"Expect: 100-continue"), "200", M + "10.1.1"),
    Case("expect something else", post(b"ab", b"Expect: 200-ok"), "417 close", M + "10.1.1"),
    Case("expect two things", post(b"ab", b"Expect: 100-continue, x"), "417 close", M + "10.1.1"),
    # --- Upgrade
    Case("upgrade ignored", head(b"Upgrade: h2c", b"Connection: Upgrade") + GET, "200 200", M + "7.8"),
    Case(
        "upgrade with a body",
        post(b"GET / HTTP/1.1\r\n\r\n", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings") + GET,
        "200 200",
        M + "7.8",
        [b"GET / HTTP/1.1\r\n\r\n", b""],
    ),
    Case(
        "upgrade with chunks",
        chunked(b"3\r\nabc\r\n0\r\n\r\n", b"Upgrade: websocket", b"Connection: upgrade") + GET,
        "200 200",
        M + "7.8",
        [b"abc", b""],
    ),
    # --- order
    Case(
        "error behind answers",
        post(b"1") + post(b"2") + b"BAD\r\n\r\n" + GET,
        "200 200 400 close",
        V + "9.3.2",
        [b"1", b"2"],
    ),
    Case("bad chunk behind answers", post(b"1") + chunked(b"x\r\n"), "200 400 close", V + "9.3.2", [b"1"]),
    Case("nothing after an error", b"GET / HTTP/1.1\r\n\r\n" + post(b"1"), "400 close", V + "9.3.2", []),
    Case(
        "smuggled by a length and chunks",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
        "400 close",
        V + "11.2",
        [],
    ),
    Case(
        "smuggled by a trailer", chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n") + OK, "400 close", M + "6.5.1", []
    ),
    Case("half a head", GET + b"GET / HTT", "200 open", V + "2.2"),
    Case("nothing", b"", "open", V + "2.1", []),
]
