"""`ray job submit --working-dir . -- python jobs/contrast.py ...`: the same as `raytraffic contrast ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["contrast", *sys.argv[1:]]))
