"""`ray job submit --working-dir . -- python jobs/optimize.py ...`: the same as `raytraffic optimize ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["optimize", *sys.argv[1:]]))
