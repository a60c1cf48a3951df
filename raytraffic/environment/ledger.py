"""What descriptions have cost, kept beside the answers, so that neither a kill nor a lost worker makes the account forget.

    <folder>/<run>/<process>.json     requests, tokens and cost of one process that asked, written again after every request

A run's account is the sum over its processes, the folder's that over all runs that shared the answers. A request that was under way when
its process was killed is in neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from raytraffic.environment.limits import Spent
from raytraffic.files import Location

__all__ = ["Ledger"]


@dataclass(frozen=True)
class Ledger:
    """The accounts in a folder, local or s3://, as one of its runs sees them; it can be sent to another process."""

    folder: Location
    run: str

    def write(self, process: str, spent: Spent) -> None:
        """Keeps what a process of this run has spent so far, in place of what it had."""
        self.folder.child(self.run, f"{process}.json").write_bytes((json.dumps(asdict(spent)) + "\n").encode())

    def of_run(self) -> Spent:
        """What this run's processes have spent; ValueError for a file that is no account."""
        return _sum(self.folder.child(self.run).list())

    def in_all(self) -> Spent:
        """What all runs have spent; ValueError as of `of_run`."""
        return _sum(file for run in self.folder.list() for file in run.list())


def _sum(files: Iterable[Location]) -> Spent:
    return sum((_read(file) for file in files), Spent())


def _read(file: Location) -> Spent:
    try:
        return Spent(**json.loads(file.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}, expected the account of a process; delete it if it is not wanted") from None
