from __future__ import annotations

import pytest

from mx_validator.transactions import Transactions


@pytest.mark.parametrize(
    ("first", "second", "may_join"),
    [
        ("A@d.example", "A@d.example", True),
        ("A@d.example", "a@d.example", False),
        ("a@D.example", "a@d.example", False),
        ("a@d.example", "b@d.example", True),
        ("a@d.example", "a@d.example.", True),
        ("Ü@d.example", "ü@d.example", False),
        ("straße@d.example", "STRASSE@d.example", False),
        ("\u212a@d.example", "k@d.example", False),  # the sign for kelvin
        ("\udcff\udcc3A@d.example", "\udcff\udcc3a@d.example", False),
        ("\udcff@d.example", "\udcfe@d.example", True),
        ("", "", True),
    ],
)
def test_who_differs_in_case_only(first: str, second: str, may_join: bool) -> None:
    transactions = Transactions()
    assert transactions.admit(b"1", False, first)
    assert transactions.admit(b"1", True, second) is may_join
    assert transactions.admit(b"1", True, first)
    assert transactions.admit(b"2", False, second)
    assert transactions.admit(b"", False, second)


def test_many_recipients_of_one_transaction() -> None:
    transactions = Transactions()
    names = [f"Bounce+{number}@d.example" for number in range(100)]
    assert all(transactions.admit(b"1", number > 0, name) for number, name in enumerate(names))
    assert not any(transactions.admit(b"1", True, name.lower()) for name in names)
    assert all(transactions.admit(b"1", True, name) for name in names)


def test_a_transaction_from_before_a_restart_gets_no_further_recipient() -> None:
    assert not Transactions().admit(b"1", True, "a@d.example")


def test_the_oldest_transactions_are_forgotten_and_nobody_joins_them() -> None:
    transactions = Transactions(max_recipients=4)
    for instance, recipient in ((b"1", "A"), (b"1", "B"), (b"2", "C"), (b"3", "D")):
        assert transactions.admit(instance, False, recipient)
    assert not transactions.admit(b"1", True, "a")
    assert transactions.admit(b"4", False, "E")  # evicts both of the first transaction
    assert not transactions.admit(b"1", True, "A")
    assert transactions.admit(b"5", False, "F")
    assert not transactions.admit(b"2", True, "c")
    assert transactions.admit(b"6", False, "G")
    assert not transactions.admit(b"2", True, "C")


def test_a_transaction_of_more_than_is_remembered() -> None:
    transactions = Transactions(max_recipients=3)
    joined = [transactions.admit(b"1", number > 0, f"{number}") for number in range(10)]
    assert joined == [True] * 4 + [False] * 6
