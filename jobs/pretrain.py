"""`ray job submit --working-dir . -- python jobs/pretrain.py ...`: the same as `raytraffic pretrain ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["pretrain", *sys.argv[1:]]))
