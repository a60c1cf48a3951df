"""`ray job submit --working-dir . -- python jobs/prepare.py ...`: the same as `raytraffic prepare ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["prepare", *sys.argv[1:]]))
