"""A private CA for tests: certificates that are right, and some that are not."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

ELLIPTIC = "EC -pkeyopt ec_paramgen_curve:P-256"


class CA:
    """A root and an intermediate CA in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key("root.key")
        self._openssl("req -x509 -new -key root.key -days 30 -subj /CN=Root -out root.pem")
        self.issue("intermediate", "basicConstraints=critical,CA:TRUE", by="root", days=20)

    def key(self, name: str, kind: str = ELLIPTIC) -> Path:
        """Make a private key."""
        self._openssl(f"genpkey -algorithm {kind} -out {name}")
        return self.folder / name

    def issue(self, name: str, extension: str, by: str, days: int) -> None:
        """Make NAME.pem, and NAME.key unless it is there."""
        if not (self.folder / f"{name}.key").exists():
            self.key(f"{name}.key")
        (self.folder / "extensions").write_text(extension + "\n")
        self._openssl(f"req -new -key {name}.key -subj /CN={name} -out {name}.csr")
        self._openssl(
            f"x509 -req -in {name}.csr -CA {by}.pem -CAkey {by}.key -CAcreateserial"
            f" -extfile extensions -days {days} -out {name}.pem"
        )

    def chain(self, name: str, address: str, by: str = "intermediate", days: int = 10) -> Path:
        """Make a certificate for an address (DNS:... or IP:...), with its issuer's behind it."""
        self.issue(name, f"subjectAltName={address}", by, days)
        issuer = (self.folder / f"{by}.pem").read_text()
        chain = self.folder / f"{name}.chain.pem"
        chain.write_text((self.folder / f"{name}.pem").read_text() + issuer)
        return chain

    def _openssl(self, command: str) -> None:
        done = subprocess.run(
            ["openssl", *command.split()],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def self_signed(name: str, days_ago: int, days_left: int) -> str:
    """Return a key and a certificate (PEM) that has some of its life behind it, or all."""
    now = datetime.datetime.now(datetime.timezone.utc)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=days_ago))
        .not_valid_after(now + datetime.timedelta(days=days_left))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return (private + made.public_bytes(Encoding.PEM)).decode()
