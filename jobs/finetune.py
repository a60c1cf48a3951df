"""`ray job submit --working-dir . -- python jobs/finetune.py ...`: the same as `raytraffic finetune ...`."""

import sys

from raytraffic.cli import main

sys.exit(main(["finetune", *sys.argv[1:]]))
