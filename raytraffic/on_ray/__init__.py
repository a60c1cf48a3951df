"""What runs on a Ray cluster: the only package, beside the command line, that imports ray."""

import os

# The Ray that a verb starts for itself is to listen on the loopback interface only. Ray listens on all of them, but for the setting that
# keeps it off the network where it has no clusters (macOS, Windows); it is read when ray is imported (docs/beware.md).
if not os.environ.get("RAY_ADDRESS"):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
