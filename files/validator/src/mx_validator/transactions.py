"""The allowed recipients of each transaction, of which no two may differ in case only.

cleanup(8) takes the second of two such recipients for a duplicate of the first and drops it, though
both got 250: been_here.c folds case (BH_FLAG_FOLD), and no parameter changes that.
"""

from __future__ import annotations

from collections import OrderedDict

# In all transactions together: 6 MB, or 80 MB if all are as long as Postfix takes them. At 1,000
# messages a second this is the last 20 s; a transaction that takes longer gets a 452.
MAX_RECIPIENTS = 20_000


class Transactions:
    """The allowed recipients, by transaction; the oldest transactions are evicted."""

    def __init__(self, max_recipients: int = MAX_RECIPIENTS) -> None:
        self._max_recipients = max_recipients
        self._count = 0
        # Nearly all transactions have one recipient, stored as it is; of more, each is stored by
        # its folded form.
        self._allowed: OrderedDict[bytes, str | dict[str, str]] = OrderedDict()

    def admit(self, instance: bytes, begun: bool, recipient: str) -> bool:
        """Add a recipient; return False if another of the transaction differs in case only.

        Args:
            instance: Postfix's name for the transaction; empty if it gives none, and then every
                recipient is admitted.
            begun: Whether the transaction has recipients. If they are not known, because they are
                from before a restart, no other is admitted.
            recipient: The address; an equal one is the same recipient, and is admitted again.
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
            _, evicted = self._allowed.popitem(last=False)
            self._count -= 1 if isinstance(evicted, str) else len(evicted)
        return True


def _fold(recipient: str) -> str:
    # Like ICU's in Postfix's casefold.c, and of what is not UTF-8 at least as much.
    return recipient.casefold()
