"""A bundle opened for a person: what a library caller is warned of stands as a line on the terminal."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from export.runtime import Runtime


def opened(bundle: Path, provider: str, threads: int | None, *, routed: bool) -> Runtime:
    """The runtime of a bundle. Where a router is to choose, costs that it cannot weigh are named."""
    from export.runtime import Runtime
    from export.runtime.routing.costs import UnusedCosts, other_bench

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedCosts)
        runtime = Runtime.load(bundle, provider, threads)
    if routed and runtime.router and (unused := other_bench(bundle, provider, threads)):
        click.secho(unused, err=True, fg="yellow")
    return runtime
