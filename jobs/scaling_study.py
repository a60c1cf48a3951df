"""`ray job submit --working-dir . -- python jobs/scaling_study.py ...`: the same as `raytraffic study ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["study", *sys.argv[1:]]))
