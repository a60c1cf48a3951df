"""The Ray that a verb starts for itself can be reached from this machine only."""

from __future__ import annotations

import ipaddress

import psutil
import ray


def test_nothing_listens_beyond_the_loopback_interface(cluster: None) -> None:
    assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
    found = {}
    for process in psutil.Process().children(recursive=True):
        for socket in process.net_connections("inet"):
            if socket.status == psutil.CONN_LISTEN:
                address = ipaddress.ip_address(socket.laddr.ip)
                found[process.name(), socket.laddr.port] = getattr(address, "ipv4_mapped", None) or address
    assert any(name == "gcs_server" for name, _ in found)
    assert all(address.is_loopback for address in found.values()), found
