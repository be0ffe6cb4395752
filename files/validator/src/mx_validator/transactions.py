"""Recipients of one transaction that differ in case only.

cleanup(8) takes the second of them for a repetition of the first and drops it, though both got 250:
been_here.c folds case (BH_FLAG_FOLD), and no parameter changes that.
"""

from __future__ import annotations

from collections import OrderedDict

# Remembered, of all transactions: 6 MB, or 80 MB if all are as long as Postfix takes them. At 1,000
# messages a second that is the last 20 s; who takes longer for a transaction has to come back.
MAX_RECIPIENTS = 20_000


class Transactions:
    """The recipients that were allowed, by transaction; forgets the oldest transactions."""

    def __init__(self, max_recipients: int = MAX_RECIPIENTS) -> None:
        self._max_recipients = max_recipients
        self._count = 0
        # Nearly all have one recipient, as it is; of more, by its folded form each.
        self._allowed: OrderedDict[bytes, str | dict[str, str]] = OrderedDict()

    def admit(self, instance: bytes, begun: bool, recipient: str) -> bool:
        """Whether a recipient may join its transaction: none there differs from it in case only.

        Args:
            instance: What Postfix calls the transaction; empty if it does not say, and then every
                recipient may join.
            begun: Whether the transaction has recipients. If they are not remembered, being from
                before a restart, no other may join.
            recipient: The address; an equal one is the same recipient, who may join again.
        """
        if not instance:
            return True
        allowed = self._allowed.get(instance)
        if allowed is None:
            if begun:
                return False
            self._allowed[instance] = recipient
        else:
            if isinstance(allowed, str):
                allowed = self._allowed[instance] = {_fold(allowed): allowed}
            folded = _fold(recipient)
            if folded in allowed:
                return allowed[folded] == recipient
            allowed[folded] = recipient
        self._count += 1
        if self._count > self._max_recipients:
            _, forgotten = self._allowed.popitem(last=False)
            self._count -= 1 if isinstance(forgotten, str) else len(forgotten)
        return True


def _fold(recipient: str) -> str:
    # Like ICU's in Postfix's casefold.c, and of what is not UTF-8 at least as much.
    return recipient.casefold()
