"""The command: python3 -m oempro_mx."""

import sys

from oempro_mx.cli import main

sys.exit(main())
