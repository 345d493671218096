"""What Pillow warns of users' pictures, said once and by us."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL


@contextmanager
def picture_warnings(say: Callable[[str], None]) -> Iterator[None]:
    """Keep Pillow's warnings off the terminal, and at the end say how many there were, and of what.

    Which rows they are about `mvlm data check` says, which opens one picture after another.
    """
    home, warned = Path(PIL.__file__).parent, []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\.")
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], filename: str, *where: Any, **more: Any) -> None:
            if Path(filename).is_relative_to(home):
                warned.append(" ".join(str(message).split()))
            else:
                others(message, category, filename, *where, **more)

        warnings.showwarning = show
        yield
    if warned:
        say(f"Pillow warned {len(warned):,} times of pictures ({warned[0]}): `mvlm data check` names their rows")
