from __future__ import annotations

import pytest

from mx_validator.model import Outcome, Verdict
from mx_validator.platform_answers import MAX_LISTED_DOMAINS, parse_check, parse_list

RESPONSES = [
    (200, b'{"Success":true,"RelayDomain":"x"}', Verdict.ALLOW),
    (200, b' \r\n{"Success": true}\n', Verdict.ALLOW),
    (200, b'\xef\xbb\xbf{"Success": true}', Verdict.ALLOW),
    (200, b'{"Success":false}', Verdict.DEFER),
    (200, b'{"Success":1}', Verdict.DEFER),
    (200, b'{"Success":"true"}', Verdict.DEFER),
    (200, b'{"Success":null}', Verdict.DEFER),
    (200, b'{"success":true}', Verdict.DEFER),
    (200, b'[{"Success":true}]', Verdict.DEFER),
    (200, b"true", Verdict.DEFER),
    (200, b"{}", Verdict.DEFER),
    (200, b"", Verdict.DEFER),
    (200, b'{"Success":true', Verdict.DEFER),
    (200, b'{"Success":true}{"Success":true}', Verdict.DEFER),
    (200, b"<html>", Verdict.DEFER),
    (200, b'{"Success":true,"x":"\xff"}', Verdict.DEFER),
    (200, b"[" * 60000, Verdict.DEFER),
    (200, b'{"Success":true,"x":' + b"9" * 60000 + b"}", Verdict.DEFER),
    (500, b"{}", Verdict.DENY),
    (500, b" {}\r\n", Verdict.DENY),
    (500, b"", Verdict.DEFER),
    (500, b"[]", Verdict.DEFER),
    (500, b"null", Verdict.DEFER),
    (500, b'""', Verdict.DEFER),
    (500, b"{}{}", Verdict.DEFER),
    (500, b"{", Verdict.DEFER),
    (500, b'{"Success":true}', Verdict.DEFER),
    (500, b'{"Errors":[]}', Verdict.DEFER),
    (500, b"<html>{}</html>", Verdict.DEFER),
    *(
        (status, body, Verdict.DEFER)
        for status in (201, 204, 301, 302, 307, 400, 401, 403, 404, 422, 429, 501, 502, 503, 504)
        for body in (b'{"Success":true}', b"{}")
    ),
]


@pytest.mark.parametrize(("status", "body", "verdict"), RESPONSES)
def test_judge(status: int, body: bytes, verdict: Verdict) -> None:
    assert parse_check(status, body).verdict is verdict
    assert (parse_check(status, body).kind == "key_refused") is (status in {401, 403})


LISTS = [
    (b'{"Success":true,"Domains":["A.example","b.EXAMPLE.","m\\u00fcller.example"]}', 3),
    (b'{"Success":true,"Domains":{"0":"a.example","2":"b.example"}}', 2),
    (b'{"Success":true,"Domains":[]}', 0),
    (b'{"Success":true,"Domains":["a.example","",null,7,["b.example"],"[::1]","x","a b.c"]}', 1),
]


@pytest.mark.parametrize(("body", "number"), LISTS)
def test_lists(body: bytes, number: int) -> None:
    domains = parse_list(200, body)
    assert isinstance(domains, frozenset)
    assert len(domains) == number
    assert domains <= {"a.example", "b.example", "xn--mller-kva.example"}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"null", b"<html>", b"{", b"[" * 100_000, b"\xff\xfe", b"{}"),
        b'{"Success":true}',
        b'{"Success":true,"Domains":"a.example"}',
        b'{"Success":false,"Domains":["a.example"]}',
        b'{"Success":1,"Domains":["a.example"]}',
    ],
)
def test_no_lists(body: bytes) -> None:
    assert parse_list(200, body) == Outcome(
        Verdict.DEFER, "platform answered 200 without a list", "no_verdict"
    )


def test_a_list_is_cut_at_its_bound() -> None:
    names = ",".join(f'"{number}.example"' for number in range(MAX_LISTED_DOMAINS + 1))
    domains = parse_list(200, f'{{"Success":true,"Domains":[{names}]}}'.encode())
    assert len(domains) == MAX_LISTED_DOMAINS
