"""`ray job submit --working-dir . -- python jobs/forecast.py ...`: the same as `raytraffic forecast ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["forecast", *sys.argv[1:]]))
