"""Is it right on a GPU: the tests marked `cuda`, each written down as it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.record import Record, Told

ROOT = Path(__file__).parents[2]


class Recorder:
    """A pytest plugin that writes each test's end at once."""

    def __init__(self, record: Record) -> None:
        self.record, self.tests = record, {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.rpartition("/")[2]
            self.tests[name] = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
            if report.outcome != "passed":
                self.tests[name]["why"] = _reason(report)[-1500:]
            outcomes = [test["outcome"] for test in self.tests.values()]
            self.record.add(counts={kind: outcomes.count(kind) for kind in sorted(set(outcomes))}, tests=self.tests)


def _reason(report: Any) -> str:
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext)


# A GPU's machine has other versions than those that the tests are held to: what they warn of is no error there.
_OTHER_VERSIONS = [
    word for kind in ("Future", "Deprecation", "PendingDeprecation") for word in ("-W", f"ignore::{kind}Warning")
]


def run(record: Record, told: Told) -> None:
    """Collect the tests, and run them on the device. Raises when one failed or none was found."""
    os.environ["MVLM_CUDA_TESTS_ON"] = told.device
    tests = ["-m", "cuda", "--rootdir", str(ROOT), str(ROOT / "tests" / "cuda")]
    status = pytest.main(["-q", "-p", "no:cacheprovider", *_OTHER_VERSIONS, *tests], plugins=[Recorder(record)])
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"pytest ended with {status!r}")
