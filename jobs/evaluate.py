"""`ray job submit --working-dir . -- python jobs/evaluate.py ...`: the same as `raytraffic evaluate ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["evaluate", *sys.argv[1:]]))
