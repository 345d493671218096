"""A standing yes/no question: says when the answer turns, and is sure of it for a while.

    python examples/alert.py bundle 0 "is there a frame?"

`choices` scores both answers in one prefill, so a frame costs no decoding. Two thresholds, and a few frames in a row,
keep an answer that wavers from ringing. SOURCE is a camera's number, a video, or a folder of pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from export.runtime import MvlmError, Runtime
from export.runtime.frames import frames

ON, OFF, IN_A_ROW = 0.8, 0.4, 3


def alerts(runtime: Runtime, source: str, question: str, in_a_row: int = IN_A_ROW) -> Iterator[tuple[str, bool, float]]:
    """The frames at which the alert turned, whether it is on now, and the share of `yes`."""
    on, agreeing = False, 0
    for frame in frames(source):
        answer = runtime.look(frame.picture, frame.order).ask(question, choices=["yes", "no"])
        share = answer.choices["yes"]
        agreeing = agreeing + 1 if (share < OFF if on else share > ON) else 0
        if agreeing == in_a_row:
            on, agreeing = not on, 0
            yield frame.name, on, share


def main(bundle: str, source: str, question: str) -> None:
    for name, on, share in alerts(Runtime.load(bundle), source, question):
        print(f"{name}: {'ALERT' if on else 'over'} (yes {share:.2f})", flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4])
    except MvlmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
