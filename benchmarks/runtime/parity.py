"""Does the runtime answer as torch did, token for token, on every test row at every scale of a bundle?

`python -m benchmarks.runtime.parity --demo demo` compares the bundle with the predictions that `mvlm label` stored.
Both decode greedily from the same weights in float32; the runtime goes from the picture's file to the text on its own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import pyarrow.parquet as pq

from benchmarks.machine import keep
from export.runtime import Runtime


@click.command()
@click.option(
    "--demo", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="A demo's folder."
)
@click.option("--limit", type=int, help="Only so many pictures; such a run is not kept.")
def main(demo: Path, limit: int | None) -> None:
    """Compare every answer and keep the count."""
    runtime = Runtime.load(demo / "bundle", threads=1)
    labels = pq.read_table(demo / "labels" / "labels.parquet", filters=[("split", "==", "test")]).to_pylist()
    said = {(row["id"], row["num_visual_tokens"]): row["prediction"] for row in labels}
    pictures: dict[str, list[dict]] = {}
    for line in (demo / "rows" / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["split"] == "test":
            pictures.setdefault(row["image"], []).append(row)
    scales = runtime.manifest.scales
    answers, others = 0, []
    started = time.perf_counter()
    with click.progressbar(list(pictures.items())[:limit], label="asking the runtime") as bar:
        for image, rows in bar:
            view = runtime.look(demo / "rows" / image)
            for row in rows:
                for m in scales:
                    answer = view.ask(row["question"], scale=m, max_new_tokens=16)
                    answers += 1
                    if answer.text != said[row["id"], m]:
                        others.append(
                            {"id": row["id"], "scale": m, "runtime": answer.text, "torch": said[row["id"], m]}
                        )
    seconds = time.perf_counter() - started
    click.echo(f"{answers} answers, {len(others)} differ, {1000 * seconds / answers:.2f} ms each")
    if limit is None:
        command = "python -m benchmarks.runtime.parity"
        click.echo(keep("parity", command, answers=answers, differ=others, scales=list(scales), seconds=seconds))


if __name__ == "__main__":
    main()
