"""`ray job submit --working-dir . -- python jobs/calibrate.py ...`: the same as `raytraffic calibrate ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["calibrate", *sys.argv[1:]]))
