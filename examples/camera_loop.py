"""A camera, or a video, and a question that is asked of the latest frame again and again.

    python examples/camera_loop.py bundle 0 "is the door open?"

The latest frame wins: a slot holds one, and what comes while the model is busy replaces it. A frame that is older than
the limit is not asked about. Needs OpenCV: pip install "mvlm[cpu,camera]"
"""

from __future__ import annotations

import sys
from collections import defaultdict

from export.runtime import MvlmError, Runtime
from export.runtime.frames import LatestFrame

OLDEST_MS = 500.0


def main(bundle: str, camera: str, question: str, frames: int | None = None) -> None:
    runtime = Runtime.load(bundle)
    total: defaultdict[str, float] = defaultdict(float)
    asked = 0
    with LatestFrame(int(camera) if camera.isdecimal() else camera, OLDEST_MS) as latest:
        while frames is None or asked < frames:
            frame = latest.next()
            waited_ms = frame.age_ms
            answer = runtime.look(frame.picture, frame.order).ask(question)
            asked += 1
            for stage, ms in {"waited_ms": waited_ms, **answer.timings}.items():
                total[stage] += ms
            stages = "  ".join(f"{stage.removesuffix('_ms')} {ms / asked:.1f}" for stage, ms in total.items())
            print(f"{frame.name}: {answer.text} ({answer.num_visual_tokens} tokens, {frame.age_ms:.0f} ms old)")
            print(f"  mean ms  {stages}  dropped {latest.dropped}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:4])
    except MvlmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
