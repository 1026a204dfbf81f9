"""``python -m nnunet_dg.cli``."""

import sys

from nnunet_dg.cli import main

sys.exit(main())
