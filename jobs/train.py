"""`ray job submit --working-dir . -- python jobs/train.py ...`: the same as `raytraffic train ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
