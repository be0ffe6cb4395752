"""Talk SMTP to Postfix on this host, up to the recipients: no message is sent.

No check of the files sees a misspelt restriction; this does. Prints what is wrong and exits 1.
"""

import smtplib
import sys
from contextlib import closing

host = sys.argv[1]
wrong = []
# Closed without QUIT: under stress Postfix answers 421 to whatever follows a refused recipient.
with closing(smtplib.SMTP("127.0.0.1", 25, local_hostname="probe.invalid", timeout=20)) as smtp:
    smtp.ehlo()
    if not smtp.has_extn("starttls"):
        wrong.append("STARTTLS is not offered")
    code, text = smtp.mail("")
    if code != 250:
        wrong.append(f"MAIL FROM:<> was answered {code} {text.decode()}")
    if code == 452:
        wrong.append(
            "/var/spool/postfix has less free space than `postconf queue_minfree` says: give the"
            " host a larger disk, or lower postfix_message_size_limit"
        )
    for recipient, accepted in ((f"postmaster@{host}", True), ("probe@relay-probe.invalid", False)):
        code, text = smtp.rcpt(recipient)
        if (code == 250) is not accepted:
            wrong.append(f"RCPT TO:<{recipient}> was answered {code} {text.decode()}")
print("\n".join(wrong))
sys.exit(bool(wrong))
