"""What is told of each figure, from the JSON files alone, and the README's table of a few.

`python -m benchmarks.figures` writes the table in; a test holds the README to what this prints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks.code import is_stale
from benchmarks.decode import told as bits
from benchmarks.gpu import told as gpu
from benchmarks.router import told as router
from benchmarks.runtime import told as runtime
from benchmarks.train import told as train

Figures = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- figures -->\n", "<!-- end of figures -->"
STALE = ", stale"


def summary() -> str:
    """The README's one table: the demo's ladder, what its router gains, and what holds the rest."""
    rows = []
    for demo in map(read, sorted(RESULTS.glob("demo_*.json"))):
        scales = " / ".join(map(str, demo["scales"]))
        right = " / ".join(_percent(demo["ladder"]["all"]))
        rows.append(f"| {_title(demo)}: right answers at {scales} tokens, % | {right} | {when(demo)} |")
        shipped = next(policy for policy in demo["policies"] if policy["name"] == "router")
        gains = "; ".join(f"{at['budget']:g}: {_points(at['gain'])}" for at in shipped["at"])
        rows.append(
            f"| {_title(demo)}: router over a mix of fixed scales, points by mean tokens | {gains} | {when(demo)} |"
        )
    for name, (said, value) in _IN_SHORT.items():
        for found in map(read, sorted(RESULTS.glob(f"{name}.json"))):
            rows.append(f"| {said} | {value(found)} | {when(found)} |")
    return "\n".join(["| measured | result | date |", "|---|---|---|", *rows]) + "\n"


def told(found: Figures) -> str | None:
    """What a file says, in words and tables; None where this does not know the file."""
    if fnmatch(found["measured"], "demo_*"):
        return "\n\n".join([_ladder([found]), _gains([found]), _claims(found), _seconds([found])])
    return next((tell(found) for pattern, tell in _TOLD.items() if fnmatch(found["measured"], pattern)), None)


def read(file: Path) -> Figures:
    return json.loads(file.read_text())


def _title(demo: Figures) -> str:
    _, family, seed = demo["measured"].split("_")
    return f"`{family}`, seed {seed.removeprefix('seed')}"


def _ladder(demos: list[Figures]) -> str:
    scales = demos[0]["scales"]
    lines = [
        f"**The ladder**: right answers (%), {demos[0]['rows']} test questions about {demos[0]['groups']} pictures.\n",
        "| " + " | ".join(["tokens", *map(str, scales)]) + " |",
        "|---" * (len(scales) + 1) + "|",
    ]
    for demo in demos:
        lines.append(f"| {_title(demo)}, all kinds | " + " | ".join(_percent(demo["ladder"]["all"])) + " |")
    for kind, steps in demos[0]["ladder"].items():
        if kind != "all":
            lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(_percent(steps)) + " |")
    return "\n".join([*lines, f"\nThe kinds are those of {_title(demos[0])}."])


def _gains(demos: list[Figures]) -> str:
    budgets = [at["budget"] for at in demos[0]["policies"][0]["at"]]
    lines = [
        "**The router**: points above mixing two fixed scales at equal mean tokens, with 95 % intervals by picture;",
        "after @, the mean that was spent.\n",
        "| " + " | ".join(["mean tokens", *(f"{budget:g}" for budget in budgets)]) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for demo in demos:
        for policy in demo["policies"]:
            gains = [f"{_points(at['gain'])} @{at['mean_cost']:.0f}" for at in policy["at"]]
            lines.append(f"| {_title(demo)}: {policy['name']} | " + " | ".join(gains) + " |")
    oracle = demos[0]["oracle"]
    # Runs kept before the oracle's curve was told have the pair alone.
    cost, score = oracle if isinstance(oracle, list) else (oracle["mean_cost"], oracle["score"])
    lines.append(
        f"\nThe oracle of {_title(demos[0])}, which knows each answer: {100 * score:.1f} % at {cost:.1f} tokens."
    )
    return "\n".join(lines)


def _claims(demo: Figures) -> str:
    return "\n".join(
        [f"What was claimed of {_title(demo)}, and how it ended:\n", *(f"- {claim}" for claim in demo["claims"])]
    )


def _seconds(demos: list[Figures]) -> str:
    lines = []
    for demo in (demo for demo in demos if demo["seconds"]):
        seconds, machine = demo["seconds"], demo["machine"]
        spent = ", ".join(f"{verb} {value:.0f} s" for verb, value in seconds.items())
        lines.append(
            f"- {_title(demo)}: {sum(seconds.values()):.0f} s in all ({spent}) on {machine['cores']} cores of"
            f" {machine['processor']}, {demo['date']}; `{demo['command']}`"
        )
    return "\n".join(
        ["**The demo's time** after the installation:\n", *(lines or ["- not taken on a quiet machine yet"])]
    )


def _parity(parity: Figures) -> str:
    return (
        f"**Exact**: of {parity['answers']} greedy answers (every test question at every scale), the runtime and torch"
        f" differ in {len(parity['differ'])}; `{parity['command']}`."
    )


def _router_tables(router: Figures) -> str:
    """On noise nothing is attainable, so no share of it is told."""
    lines = [
        "**The router on tables drawn from known probabilities**: the share that it takes of what any router could gain"
        " over mixing two fixed scales, and its worst gain at any budget, in points.\n",
        "| table | share | asked for | worst gain | RouteLLM's way | RouterBench's way |",
        "|---|---|---|---|---|---|",
    ]
    for name, table in router["tables"].items():
        ours, others = table["ways"]["ours"], [table["ways"][way] for way in ("RouteLLM", "RouterBench")]
        known = table["target"] is not None
        shares = [f"{way['share']:.2f}" if known else "" for way in (ours, *others)]
        target = f"{table['target']:.2f}" if known else "nothing claimed"
        row = [name, shares[0], target, f"{ours['worst_gain_points']:+.2f}", *shares[1:]]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _train_step(step: Figures) -> str:
    ways = step["ways"]
    slow, fast, once = ways["m3"], ways["packed"], ways["encoded once"]
    size = step["measured"].split("_")[2:4]
    return (
        f"**A training step at {len(step['scales'])} scales** ({'.'.join(size)} weights, {step['device']}, tower"
        f" trained): packed into one pass it is {step['ratio']:.2f} times as fast as M3's own way, which encodes the"
        f" picture and runs once a scale, at {fast['peak_mib']:.0f} MiB against {slow['peak_mib']:.0f}. Encoding once"
        f" gives {slow['seconds'] / once['seconds']:.2f} of that. The loss is the same ({fast['loss']:.5f} and"
        f" {slow['loss']:.5f}). The packed step runs at {step['fraction']:.2f} of the matrix peak measured beside it,"
        f" so the rest is arithmetic: the language model reads all scales in either way."
    )


def _label_sweep(sweep: Figures) -> str:
    return (
        f"**Labelling at {len(sweep['scales'])} scales** takes {sweep['ratio']:.2f} times the finest alone; the tokens"
        f" that are read would make it {sweep['limit']:.2f}."
    )


def _decode(decode: Figures) -> str:
    lines = [
        "**Decoders on a CPU**, random weights, everybody in turns: tokens a second (best and median), the best's part"
        " of what memory allows, milliseconds to the first token behind 36 and 576 visual ones, MiB.\n"
    ]
    for size, found in decode["sizes"].items():
        lines += [
            f"| {size} | tokens/s | median | of memory's limit | 36 | 576 | MiB |",
            "|---|---|---|---|---|---|---|",
        ]
        for peer, of in found["peers"].items():
            rate, memory = of["tokens_s"], of["memory_mib"]
            row = [
                peer, f"{rate['best']:.1f}", f"{rate['median']:.1f}", f"{rate['share_of_limit']:.2f}",
                f"{of['prefill_36']['best_ms']:.0f}", f"{of['prefill_576']['best_ms']:.0f}",
                "" if memory is None else f"{memory:.0f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(row) + " |")
        lines += ["", *(f"Left out: {peer} ({why})." for peer, why in found["absent"].items()), ""]
    return "\n".join(lines).rstrip()


def _quality(quality: Figures) -> str:
    scales = next(iter(quality["precisions"].values()))
    lines = [
        f"**What fewer bits cost** on the demo's model: points lost against torch, {quality['rows']} questions,"
        f" {quality['interval']}.\n",
        "| precision | " + " | ".join(f"{scale} tokens" for scale in scales) + " |",
        "|---" * (len(scales) + 1) + "|",
    ]
    for precision, by_scale in quality["precisions"].items():
        lost = (at["points_lost"] for at in by_scale.values())
        cells = (f"{one['points']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]" for one in lost)
        lines.append(f"| {precision} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _together(found: Figures) -> str:
    """What is gained by asking several at once, for each precision; how fast, and whether the same is answered."""
    first = next(iter(found["random"].values()))
    rows, lengths = " / ".join(first["step_ms"]), list(first["answer_tokens"])
    lines = [
        f"**Several at once**: answers a second of `ask_many` over one by one, about {found['pictures']} new pictures"
        f" (about one picture) at {found['scale']} tokens, on a decoder of {found['decoder']}; and on the demo's model,"
        " all questions about a picture, every scale.\n",
        f"| precision | step of {rows} conversations, ms | "
        + " | ".join(f"answers of {length} tokens" for length in lengths)
        + " | the demo's | other answers |",
        "|---" * (4 + len(lengths)) + "|",
    ]
    for precision, of in found["random"].items():
        steps, demo = " / ".join(f"{ms:.1f}" for ms in of["step_ms"].values()), found["demo"][precision]
        gains = [
            f"{at['pictures']['times_as_fast']:.2f} ({at['questions_about_one']['times_as_fast']:.2f})"
            for at in of["answer_tokens"].values()
        ]
        differ = f"{demo['differ']} of {demo['answers']}"
        lines.append("| " + " | ".join([precision, steps, *gains, f"{demo['times_as_fast']:.2f}", differ]) + " |")
    apart = ", ".join(f"{precision} {difference:.2g}" for precision, difference in found["products"].items())
    looks = " / ".join(f"{ms:.1f}" for ms in found["look_ms"].values())
    lines.append(
        "\nWhat a position gives beside seven others differs from what it gives alone by this part of the largest"
        f" value: {apart}. Each picture takes the demo's tower {looks} ms, looked at {' / '.join(found['look_ms'])} at"
        " once."
    )
    return "\n".join(lines)


def _paper(paper: Figures) -> str:
    """Claims of the papers, as they ended; the verdicts are read from the intervals when the file is made."""
    lines = [
        "**The papers' claims in the drawn world**: differences in points with their 95 % intervals, and what the"
        " papers report (*theirs*).\n",
        "| | claim | points |",
        "|---|---|---|",
    ]
    beside = []
    for line in paper["summary"]:
        if line.startswith(" "):
            verdict, claim = line.split(maxsplit=1)
            said, _, points = claim.rpartition(": ")
            lines.append(f"| {verdict} | {said} | {points} |")
        else:
            beside.append(f"- {line}")
    return "\n".join([*lines, "", *beside])


def _runtime(runtime: Figures) -> str:
    start, own, server = runtime["start"], runtime["own_work"], runtime["server"]
    lines = [
        f"**The runtime** on the demo's bundle: imported in {start['import_s']:.2f} s, loaded and first answered in"
        f" {start['load_and_first_answer_s']:.2f} s. Beyond the engines' own time a question takes"
        f" {own['question_ms']:.1f} ms and a token {own['token_ms']:.2f} ms;"
        f" {own['memory_beyond_open_sessions_mib']:.0f} MiB beyond the open sessions.\n",
        "| a decoder whose tokens cost | escalation, 9 to 144, against 144 at once | with a short question |"
        " two questions against one | transformers' loop against ours |",
        "|---|---|---|---|---|",
    ]
    for family, of in ((name, of) for name, of in runtime["large"].items() if isinstance(of, dict)):
        parts = ("escalation_9_to_144", "escalation_short_question", "two_questions", "transformers")
        lines.append(f"| `{family}` | " + " | ".join(f"{of[part]['ratio']:.2f}" for part in parts) + " |")
    lines += ["", "| connections | answers/s | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|---|"]
    for connections, of in server.items():
        lines.append(
            f"| {connections} | {of['answers_per_s']:.1f} | {of['p50_ms']:.0f} | {of['p95_ms']:.0f} |"
            f" {of['p99_ms']:.0f} |"
        )
    lines.append(
        "\n**The claim, in time**: the router's answers a second over those of each fixed scale at equal accuracy, end"
        " to end, priced in measured milliseconds."
    )
    padded = runtime["claim_padded"]
    cost = f"{padded['millions_of_multiplications_a_token']:.0f} million multiplications a token"
    lines += _claim_in_time("the demo's own model", runtime["claim"])
    lines += _claim_in_time(f"the same model padded with zeros to {cost}", padded)
    return "\n".join(lines)


def _claim_in_time(of: str, claim: Figures) -> list[str]:
    lines = [
        f"\n| {of}; {claim['rows']} questions | answers/s | accuracy, % | the router's rate over it |",
        "|---|---|---|---|",
    ]
    for scale, at in claim["at_equal_accuracy"].items():
        way = claim["ways"][f"scale {scale.removesuffix(' tokens')}"]
        told = "its accuracy is not reached" if at["router_over_fixed"] is None else f"{at['router_over_fixed']:.2f}"
        if at["interval_95"]:
            told += " [{:.2f}, {:.2f}]".format(*at["interval_95"])
        lines.append(f"| {scale} | {way['answers_per_s']:.1f} | {100 * way['accuracy']:.1f} | {told} |")
    return lines


# How a file is told of on the page of all figures.
_TOLD: dict[str, Callable[[Figures], str]] = {
    "parity": _parity, "router": _router_tables, "train_step_*": _train_step, "label_sweep": _label_sweep,
    "decode": _decode, "runtime": _runtime, "together": _together, "quality": _quality, "paper": _paper,
    "features_*": router.features, "agreement": router.agreement, "auto": runtime.auto,
    "gpu_right": gpu.right, "gpu_fast": gpu.fast, "gpu_labels": gpu.labels,
    "gpu_decode": gpu.decode, "gpu_real": gpu.real, "real_weights": bits.real_weights, "size": bits.size,
    "real_beside": bits.real_beside,
    "large_*": router.large, "reader_width": router.reader_width, "ood_rule": router.ood_rule,
    "callers": runtime.callers, "mixed": runtime.mixed, "views_memory": train.views_memory,
}  # fmt: skip
# What the README's table says of a file beside the demos.
_IN_SHORT: dict[str, tuple[str, Callable[[Figures], str]]] = {
    "parity": (
        "greedy answers in which the runtime and torch differ",
        lambda found: f"{len(found['differ'])} of {found['answers']}",
    ),
    "train_step_*": (
        "a training step at all scales, packed, against M3's own way",
        lambda found: f"{found['ratio']:.2f} times as fast",
    ),
    "gpu_fast": (
        "the same on a GPU, 0.5 B weights in bf16",
        lambda found: f"{found['0.5B ways']['packed_over_m3']:.2f} times as fast ({found['machine']['gpu']})",
    ),
    "gpu_real": (
        "SmolLM2-135M with a tower from nothing, minutes on a GPU: right answers by tokens, %",
        lambda found: "; ".join(f"{scale}: {100 * right:.1f}" for scale, right in found["ladder"].items()),
    ),
}


def where(figures: Figures) -> str:
    """What it was measured on, when, and how it is made again."""
    return f"{machine(figures)}, {when(figures)}; `{figures['command']}`"


def machine(figures: Figures) -> str:
    facts = figures["machine"]
    gpu = f"{facts['gpu']}, " if "gpu" in facts else ""
    return f"{gpu}{facts['cores']} cores of {facts['processor']}"


def when(figures: Figures) -> str:
    """The date, and that the code has changed since, if it has."""
    return figures["date"] + (STALE if is_stale(figures) else "")


def unmarked(text: str) -> str:
    """A page without its marks of what is stale: they come with each change of the code, and the figures stay."""
    return text.replace(STALE, "")


def _percent(steps: list[float]) -> list[str]:
    return [f"{100 * step:.1f}" for step in steps]


def _points(gain: dict[str, float]) -> str:
    return f"{100 * gain['value']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"


def inserted(readme: str) -> str:
    """The README with its table put between the marks."""
    head, _, rest = readme.partition(START)
    return head + START + summary() + END + rest.partition(END)[2]


if __name__ == "__main__":
    README.write_text(inserted(README.read_text()))
