"""`python3 -m mx_validator`: the same as the command mx-validator."""

import sys

from mx_validator.cli import main

sys.exit(main())
