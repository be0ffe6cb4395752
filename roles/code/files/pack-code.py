"""Print a project's code as one archive: a compressed tar file in base64.

It holds the package below src/ with all that is in it, and the command in bin/. The same code gives
the same tar file on every machine, whatever the times, owners and modes of the files there.

Usage: pack-code.py DIRECTORY, that of the project.
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
    return {
        file.relative_to(base).as_posix(): file
        for base, pattern in ((source, "*/**/*"), (project, "bin/*"))
        for file in base.glob(pattern)
        if file.is_file() and not {"__pycache__"} & {*file.parts} and ".egg-info" not in str(file)
    }


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
