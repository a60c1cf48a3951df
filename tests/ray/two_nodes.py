"""A verb on a cluster of two nodes beside an idle head, one of which is taken away when a file appears: `python -m tests.ray.two_nodes`.

Arguments: a glob of the file to wait for, seconds of notice (0 kills at once; else the node is drained first, as a spot instance is), and
the verb with its options. The node that is taken away is the one on which the most work runs.
"""

from __future__ import annotations

import glob
import os
import sys
import threading
import time
from typing import Any

import ray
from ray._private import state, worker
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from raytraffic.cli import main

LOOPBACK = "127.0.0.1"


def run() -> int:
    """The verb's exit status; 3 where it ended before the node was lost."""
    wanted, notice, *words = sys.argv[1:]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "node_ip_address": LOOPBACK})
    nodes = [cluster.add_node(num_cpus=3, node_ip_address=LOOPBACK) for _ in range(2)]
    os.environ["RAY_ADDRESS"] = cluster.address
    lost = threading.Event()

    def lose() -> None:
        while not glob.glob(wanted):
            time.sleep(0.02)
        free = state.available_resources_per_node()
        victim: Any = min(nodes, key=lambda node: free[node.node_id].get("CPU", 0.0))
        if float(notice):
            deadline = int((time.time() + float(notice)) * 1000)
            reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            accepted, told = worker.global_worker.gcs_client.drain_node(victim.node_id, reason, "a spot instance", deadline)
            assert accepted, told
            print("gave notice", flush=True)
            time.sleep(float(notice))
        cluster.remove_node(victim, allow_graceful=False)
        lost.set()
        print("lost the node", flush=True)

    threading.Thread(target=lose, daemon=True).start()
    status = main(words)
    was_lost = lost.is_set()
    ray.shutdown()
    cluster.shutdown()
    return status if was_lost else 3


if __name__ == "__main__":
    sys.exit(run())
