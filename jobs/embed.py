"""`ray job submit --working-dir . -- python jobs/embed.py ...`: the same as `raytraffic embed ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["embed", *sys.argv[1:]]))
