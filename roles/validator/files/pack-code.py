"""Print mx-validator's code as one archive: a compressed tar file in base64.

It holds mx_validator/ with all that is below it, and bin/mx-validator. The same code gives the same
tar file on every machine, whatever the times, owners and modes of the files there.

Usage: pack-code.py DIRECTORY, that of the project mx-validator.
"""

import base64
import gzip
import io
import sys
import tarfile
from pathlib import Path


def members(project: Path) -> dict[str, Path]:
    """Return the files by their names in the archive."""
    source = project / "src"
    found = {
        file.relative_to(source).as_posix(): file
        for file in (source / "mx_validator").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    return {**found, "bin/mx-validator": project / "bin/mx-validator"}


def archive(files: dict[str, Path]) -> bytes:
    """Return the tar file."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, file in sorted(files.items()):
            content = file.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if name.startswith("bin/") else 0o644
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


if __name__ == "__main__":
    packed = gzip.compress(archive(members(Path(sys.argv[1]))))
    print(base64.b64encode(packed).decode())
