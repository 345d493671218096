"""A bundle inside your own program: look at a picture once, then ask as often as you like.

    python examples/embed_in_app.py bundle picture.png "what time of day is it?" "what number is printed?"

Needs only what the runtime needs: pip install "mvlm[cpu]"
"""

from __future__ import annotations

import sys

from export.runtime import MvlmError, Runtime


def main(bundle: str, picture: str, *questions: str) -> None:
    runtime = Runtime.load(bundle)
    view = runtime.look(picture)  # the costly part, done once whatever is asked
    for question in questions:
        answer = view.ask(question)
        print(f"{question} {answer.text}")
        print(f"  because {answer.reason}; {sum(answer.timings.values()):.0f} ms")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MvlmError as error:
        sys.exit(f"error: {error}")
