"""What every request meets at the edge, and the one shape of every error."""

import json
import socket
import time

import pytest

from service.settings import Limits

GOOD = {"op": "softmax", "logits": [0, 1], "formats": ["float32"], "variants": ["naive"]}
JSON = {"Content-Type": "application/json"}
LARGEST = Limits().max_body_bytes


def raw(client, *pieces, pause=0.0):
    """The answer to bytes sent as they are."""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        got = b""
        while b"\r\n\r\n" not in got or len(got.split(b"\r\n\r\n", 1)[1]) < _length(got):
            part = connection.recv(65536)
            if not part:
                break
            got += part
    return got


def _length(got):
    for line in got.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def head(length, *more, path="/v1/evaluate"):
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more)
    return ("\r\n".join(lines) + (f"\r\nContent-Length: {length}" if length else "") + "\r\n\r\n").encode()


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("GET", "/v1/evaluate/", 404, "not-found"),
        ("GET", "/static/nothing.css", 404, "not-found"),
        ("GET", "/static/../app.py", 404, "not-found"),
        ("GET", "/static/%2e%2e/app.py", 404, "not-found"),
        ("GET", "/v1/evaluate", 405, "method-not-allowed"),
        ("DELETE", "/v1/ops", 405, "method-not-allowed"),
        ("OPTIONS", "/v1/evaluate", 405, "method-not-allowed"),
        ("POST", "/static/home.css", 405, "method-not-allowed"),
        ("GET", "/v1/variants?op=softmin", 422, "unknown-name"),
        ("GET", "/v1/variants?op=" + "x" * 65, 422, "invalid"),
        ("GET", "/" + "x" * 3000, 404, "not-found"),
    ],
)
def test_the_frameworks_own_errors_have_the_one_shape(service, is_problem, method, path, status, kind):
    found = is_problem(service.request(method, path), status, kind)
    assert len(found["instance"]) <= 64


def test_a_method_not_taken_names_those_that_are(service):
    assert service.get("/v1/evaluate").headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/evaluate", "/v1/truth"])
class TestBodies:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "multipart/form-data"},
            {"Content-Type": "multipart/form-data; boundary=" + 71 * "x"},
            {"Content-Type": "application/json; charset=utf-16"},
            {"Content-Type": "application/jsonx"},
            {**JSON, "Content-Encoding": "gzip"},
            {**JSON, "Content-Encoding": "identity, br"},
        ],
    )
    def test_other_types_and_encodings_are_415(self, service, is_problem, path, headers):
        is_problem(service.post(path, content=b"{}", headers=headers), 415, "unsupported-media-type")

    @pytest.mark.parametrize("body", [b"", b"{", b"[1,", b"\xff\xfe", b"[" * 100_000, b'{"op":' + b"1" * 4_000_000 + b"}"])
    def test_malformed_is_400(self, service, is_problem, path, body):
        is_problem(service.post(path, content=body, headers=JSON), 400, "malformed")

    @pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"', b"{}", b'{"op": "softmax", "logits": [NaN]}', b"[NaN]"])
    def test_json_that_is_no_request_is_422(self, service, is_problem, path, body):
        is_problem(service.post(path, content=body, headers=JSON), 422, "invalid")

    def test_too_large_is_413_before_the_body_is_sent(self, service, path):
        for length in (LARGEST + 1, 40 * 2**20, 10**12):
            got = raw(service, head(length, path=path))  # of the body nothing is sent: who waits for it answers 408
            assert b" 413 " in got
            assert b"urn:softgauge:problem:too-large" in got

    def test_the_largest_body_is_read(self, service, is_problem, path):
        is_problem(service.post(path, content=b" " * LARGEST, headers=JSON), 400, "malformed")
        is_problem(service.post(path, content=b" " * (LARGEST + 1), headers=JSON), 413, "too-large")

    def test_a_charset_of_utf8_is_taken(self, service, is_problem, path):
        headers = {"Content-Type": 'Application/JSON; charset="UTF-8"', "Content-Encoding": "identity"}
        is_problem(service.post(path, content=b"{}", headers=headers), 422)


BROKEN = {
    "two lengths": head(2, "Content-Length: 3") + b"{}",
    "a negative length": head(-1),
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": head(2, "Host: localhost") + b"{}",
    "no HTTP": b"\x16\x03\x01 hello\r\n\r\n",
    "a long odd header": head(2, "X: " + "\x00" * 5000) + b"{}",
    "a bad chunk": head(0, "Transfer-Encoding: chunked", "X-Request-ID: bad-chunk") + b"zz\r\n{}\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_http_is_a_problem_too(service, name):
    top, body = raw(service, BROKEN[name]).split(b"\r\n\r\n", 1)
    lines = top.decode().lower().split("\r\n")
    assert lines[0] == "http/1.1 400 bad request"
    assert {"content-type: application/problem+json", "connection: close", "x-content-type-options: nosniff"} <= set(lines)
    found = json.loads(body)
    assert list(found) == ["type", "title", "status", "detail", "instance", "errors", "request_id"]
    assert (found["type"], found["status"]) == ("urn:softgauge:problem:malformed", 400)
    assert "is no request of HTTP/1.1: " in found["detail"]
    assert len(found["detail"]) < 200
    assert f"x-request-id: {found['request_id']}" in lines
    assert recorded(service, found["request_id"]) in (400, 499)  # of a broken body the handler says 499
    if name == "a bad chunk":
        assert (found["request_id"], found["instance"]) == ("bad-chunk", "/v1/evaluate")


def test_a_bad_chunk_after_the_answer_ends_the_connection_and_is_no_failure_of_the_service(service):
    got = raw(service, head(0, "Transfer-Encoding: chunked").replace(b"application/json", b"text/plain"), b"zz\r\n", pause=0.2)
    assert got.startswith(b"HTTP/1.1 415")
    assert service.get("/health/live").status_code == 200
    assert "Traceback" not in service.log.read_text()
    assert "traceback" not in service.log.read_text()


def test_a_chunked_body_is_counted(service):
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    assert b" 413 " in raw(service, head(0, "Transfer-Encoding: chunked"), *[chunk] * 4, b"1\r\n \r\n")


def test_a_chunked_body_is_taken(service):
    body = json.dumps(GOOD).encode()
    pieces = [b"%x\r\n%s\r\n" % (len(body[i : i + 10]), body[i : i + 10]) for i in range(0, len(body), 10)]
    assert b" 200 " in raw(service, head(0, "Transfer-Encoding: chunked"), *pieces, b"0\r\n\r\n")


def test_a_slow_body_is_408(service):
    got = raw(service, head(100), b"{", pause=0.2)
    assert b" 408 " in got
    assert b"application/problem+json" in got
    assert b"connection: close" in got.lower()


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 64])
def test_a_request_id_is_echoed(service, given):
    assert service.get("/health/live", headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "<b>", "a;b", 'a"', "ä".encode("latin-1")])
def test_an_odd_request_id_is_replaced(service, given):
    found = service.get("/nothing", headers={"X-Request-ID": given})
    assert found.headers["x-request-id"] != given
    assert found.json()["request_id"] == found.headers["x-request-id"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost@evil", "", "evil.example:80"])
def test_another_host_name_is_refused(service, is_problem, host):
    for path in ("/", "/health/live", "/v1/ops"):
        is_problem(service.get(path, headers={"Host": host}), 400, "host-not-allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:80"])
def test_a_loopback_name_is_served(service, host):
    assert service.get("/health/live", headers={"Host": host}).status_code == 200


def test_another_host_name_is_served_if_it_is_allowed(start):
    with start(allowed_hosts=["gauge.example"]) as client:
        assert client.get("/health/live", headers={"Host": "Gauge.example:8000"}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "file://"])
def test_a_page_of_another_site_may_not_post(service, is_problem, origin):
    is_problem(service.post("/v1/evaluate", json=GOOD, headers={"Origin": origin}), 403, "origin-not-allowed")


def test_its_own_page_may_post(service):
    origin = f"http://{service.base_url.host}:{service.base_url.port}"
    assert service.post("/v1/evaluate", json=GOOD, headers={"Origin": origin}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/ops", "/openapi.json", "/static/home.css", "/nothing"])
def test_every_answer_carries_the_security_headers(service, path):
    headers = service.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_one_log_line_for_a_request_and_no_body_in_it(service):
    service.post("/v1/evaluate", json={**GOOD, "op": "secretive"}, headers={"X-Request-ID": "looked-for"})
    assert recorded(service, "looked-for") == 422
    (line,) = [row for row in map(json.loads, service.log.read_text().splitlines()) if row.get("request_id") == "looked-for"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/evaluate", 422)
    assert "secretive" not in json.dumps(line)


@pytest.mark.parametrize("sent", [b"", b"{"])
def test_a_client_that_leaves_before_the_end_of_its_body_is_no_bad_request(service, sent):
    name = f"left-{len(sent)}"
    with socket.create_connection((service.base_url.host, service.base_url.port)) as connection:
        connection.sendall(head(100, f"X-Request-ID: {name}") + sent)
    assert recorded(service, name) == 499
    assert 'route="/v1/evaluate",status="499"' in service.get("/metrics").text


def recorded(service, request_id):
    """The status in the log, once the request is there."""
    for _ in range(100):
        for line in map(json.loads, service.log.read_text().splitlines()):
            if line.get("request_id") == request_id:
                return line["status"]
        time.sleep(0.02)
    raise TimeoutError


@pytest.mark.parametrize("header", ["Host", "Origin", "Content-Type", "Content-Encoding"])
def test_a_header_is_not_echoed_at_length(service, header):
    found = service.post("/v1/evaluate", content=b"{}", headers={**JSON, header: b"\xe9\x80" * 100}).json()
    assert found["status"] in (400, 403, 415)
    assert found["detail"].count("\\x") <= 16
    assert len(found["detail"]) < 200


def test_metrics_count_by_route_and_status(service):
    service.get("/nothing")
    service.get("/v1/ops")
    text = service.get("/metrics").text
    assert 'softgauge_requests_total{method="GET",route="unmatched",status="404"}' in text
    assert 'softgauge_requests_total{method="GET",route="/v1/ops",status="200"}' in text
    assert "softgauge_request_seconds_bucket" in text
    assert "# TYPE softgauge_process_restarts_total counter\nsoftgauge_process_restarts_total " in text
    assert "# TYPE softgauge_requests_waiting gauge\nsoftgauge_requests_waiting 0.0" in text


def test_headers_without_end_are_refused(service):
    flood = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 8000) for i in range(20))
    with socket.create_connection((service.base_url.host, service.base_url.port), timeout=10) as connection:
        try:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" + flood)
            answer = connection.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""  # refused while it was still being sent
    assert b" 200 " not in answer
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_a_second_content_encoding_is_seen(service):
    body = json.dumps(GOOD).encode()
    answer = raw(service, head(len(body), "Content-Encoding: identity", "Content-Encoding: gzip") + body)
    assert answer.startswith(b"HTTP/1.1 415")


def test_so_many_unfinished_bodies_are_refused_and_no_finished_one_suffers(service):
    """max_receiving bodies may be on their way at once: what they hold is bounded."""
    waiting = [
        socket.create_connection((service.base_url.host, service.base_url.port), timeout=10) for _ in range(Limits().max_receiving)
    ]
    try:
        for connection in waiting:
            connection.sendall(head(1000) + b"{")
        deadline = time.monotonic() + 10
        while (status := service.post("/v1/evaluate", json=GOOD).status_code) != 429:
            assert time.monotonic() < deadline
        assert status == 429
        assert service.get("/health/live").status_code == 200
    finally:
        for connection in waiting:
            connection.close()
    while service.post("/v1/evaluate", json=GOOD).status_code != 200:
        assert time.monotonic() < deadline + 10
