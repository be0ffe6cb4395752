from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mx_validator.domain import MalformedDomainError, normalise, recipient_domain

LABEL_63 = "a" * 63
LONGEST = ".".join([LABEL_63, LABEL_63, LABEL_63, "b" * 57, "com"])
assert len(LONGEST) == 253

GOOD = {
    "a@example.com": "example.com",
    "A@Example.COM": "example.com",
    "@example.com": "example.com",
    "bounce+42=joe=example.org@example.com": "example.com",
    "a@b@example.com": "example.com",
    '"a@b"@example.com': "example.com",
    '"a b"@example.com': "example.com",
    "\udcff\udcfe@example.com": "example.com",
    "a\nb@example.com": "example.com",
    "a%example.org@example.com": "example.com",
    "a@example.com.": "example.com",
    "a@EXAMPLE.COM.": "example.com",
    "a@_spf.example.com": "_spf.example.com",
    "a@sub_domain.example.com": "sub_domain.example.com",
    "a@x--y.example.com": "x--y.example.com",
    "a@1.2.3.example": "1.2.3.example",
    "a@123.com": "123.com",
    "a@example.c0m": "example.c0m",
    "a@example.xn--p1ai": "example.xn--p1ai",
    "a@xn--bcher-kva.example": "xn--bcher-kva.example",
    "a@bücher.example": "xn--bcher-kva.example",
    "a@BÜCHER.example": "xn--bcher-kva.example",
    "a@bu\u0308cher.example": "xn--bcher-kva.example",
    "a@faß.example": "xn--fa-hia.example",
    "a@ｅｘａｍｐｌｅ.com": "example.com",
    "a@bücher。example": "xn--bcher-kva.example",
    "a@bücher.example.": "xn--bcher-kva.example",
    "a@_dmarc.bücher.example": "_dmarc.xn--bcher-kva.example",
    "a@пример.рф": "xn--e1afmkfd.xn--p1ai",
    f"a@{LABEL_63}.example": f"{LABEL_63}.example",
    f"a@{LONGEST}": LONGEST,
    f"a@{LONGEST}.": LONGEST,
}

MALFORMED = [
    "",
    "a",
    "postmaster",
    "example.com",
    "a@",
    "a@.",
    "a@..",
    "a@com",
    "a@com.",
    "a@localhost",
    "a@.example.com",
    "a@example..com",
    "a@example.com..",
    "a@-example.com",
    "a@example-.com",
    "a@example.-com",
    "a@example.com-",
    "a@example.123",
    "a@192.0.2.1",
    "a@192.0.2.1.",
    "a@3221225985",
    "a@[192.0.2.1]",
    "a@[IPv6:2001:db8::1]",
    "a@[example.com]",
    "a@2001:db8::1",
    "a@example.com:25",
    "a@exam ple.com",
    "a@ example.com",
    "a@example.com ",
    "a@example.com\n",
    "a@example.com\r",
    "a@example.com\0",
    "a@exam\tple.com",
    "a@exam\x7fple.com",
    "a@exam%70le.com",
    "a@example.com/x",
    "a@example.com&domain=example.org",
    "a@example.com#",
    "a@example.com?",
    'a@example.com"',
    "a@exam\\ple.com",
    "a@exam*ple.com",
    "a@*.example.com",
    "a@\udcff.example",
    "a@bücher\udcff.example",
    "a@\u200b.example",
    "a@\u00ad.com",
    "a@bü cher.example",
    "a@-ü.example",
    "a@bücher",
    "a@١٢٣.٤",
    f"a@a{LABEL_63}.example",
    f"a@c{LONGEST}",
    f"a@c{LONGEST}.",
    f"a@{LONGEST}..",
    "a@" + "ü" * 60 + ".example",
    "a@" + ".".join(["ü" * 40] * 6) + ".example",
    "a@" + "ü" * 100_000,
]


@pytest.mark.parametrize(("recipient", "domain"), GOOD.items())
def test_domain_of_a_recipient(recipient: str, domain: str) -> None:
    assert recipient_domain(recipient) == domain


@pytest.mark.parametrize("recipient", MALFORMED)
def test_malformed(recipient: str) -> None:
    with pytest.raises(MalformedDomainError):
        recipient_domain(recipient)


@pytest.mark.parametrize(
    ("recipient", "reason"),
    [
        ("joe", "address without a domain"),
        ("joe@[192.0.2.1]", "address literal"),
        ("joe@" + "a" * 300, "domain too long"),
        ("joe@nowhere", "not a domain name"),
        ("joe@ü\udcff.example", "not an internationalised domain name"),
    ],
)
def test_reason_tells_what_is_wrong_and_not_who_was_meant(recipient: str, reason: str) -> None:
    with pytest.raises(MalformedDomainError) as caught:
        recipient_domain(recipient)
    assert str(caught.value) == reason


@given(st.text() | st.text(string.ascii_lowercase + string.digits + "-_.@ü[]", max_size=40))
@example("ⅠⅠ.example")
def test_whatever_comes_in_a_domain_or_nothing_comes_out(text: str) -> None:
    try:
        domain = normalise(text)
    except MalformedDomainError:
        return
    assert re.fullmatch(r"[a-z0-9_.-]{3,253}", domain)
    assert normalise(domain) == domain
