"""Shared by the tests of fits and reports."""

from __future__ import annotations

import pytest

from tests.support.labels_maker import quick


@pytest.fixture(scope="module")
def quickly():
    """Within a module, fits and evaluations use few and small candidates."""
    with quick():
        yield


@pytest.fixture(scope="module")
def made():
    """Fits and evaluates a recipe by its name, once for the process: (folder, table, evaluation)."""
    from tests.support.judged import judged

    return judged
