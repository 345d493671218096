"""Private memory of one peer in a process of its own, in MiB: what `decode.py` calls for each."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.decode.__main__ import PEERS, SIZES, Size
from benchmarks.decode.own import EVERY_SCALE, connectors
from benchmarks.decode.peers import TEXT_TOKENS


def main(asked: str) -> None:
    """`asked` is JSON: what is opened, the folder, the size, the peer, the threads."""
    task, folder, numbers, name, threads = json.loads(asked)
    size = Size(**numbers)
    assert size in SIZES.values()
    peer = PEERS[name](Path(folder), size, threads)
    before = private_mib()
    peer.open()
    opened = connectors(Path(folder), EVERY_SCALE[-int(task.split()[1]) :]) if task.startswith("connectors") else []
    peer.prefill(36 + TEXT_TOKENS)
    peer.step()
    print(private_mib() - before, flush=True)
    del opened


def private_mib() -> float:
    """Anonymous memory of this process: mapped weight files, which are shared and can be dropped, do not count."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
