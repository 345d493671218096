"""What the GPU's files say, in words and tables, for the page of all figures."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]


def right(found: Figures) -> str:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in found["counts"].items())
    lines = [f"**Right on a GPU**: of the tests marked `cuda`, {counts}."]
    failed = {name: test["why"] for name, test in found["tests"].items() if test["outcome"] == "failed"}
    return "\n".join([*lines, *(f"\n- {name.rpartition('::')[2]}: {why}" for name, why in failed.items())])


def fast(found: Figures) -> str:
    """A table of the ways at each size, of the attention kernels, and of ever more pictures."""
    lines = [
        f"**A training step at five scales** in bf16, tower trained; matrix peak measured beside it"
        f" {found['matrix_peak'] / 1e12:.0f} TFLOP/s, copies {found['copy_bandwidth'] / 1e12:.1f} TB/s.\n",
        "| model | step | pictures | pictures/s | GiB | share of the peak |",
        "|---|---|---|---|---|---|",
    ]
    for size in _sizes(found):
        ways = found[f"{size} ways"]
        for way in ("m3", "encoded once", "packed"):
            lines.append(_line(size, f"{way}, {ways['pictures']} at once", ways["pictures"], ways[way]))
        for kernel, of in found[f"{size} attention"].items():
            lines.append(_line(size, f"packed, {kernel}", ways["pictures"], of))
        if "pictures_per_s" in found.get(f"{size} liger", {}):
            lines.append(_line(size, "packed, Liger and flex_attention", ways["pictures"], found[f"{size} liger"]))
        for pictures, of in found[f"{size} batches"].items():
            if isinstance(of, dict):
                lines.append(_line(size, "packed", int(pictures), of))
    lines.append("")
    for size in _sizes(found):
        ways, spent = found[f"{size} ways"], found[f"{size} profile"]
        kinds = ", ".join(f"{kind} {share:.2f}" for kind, share in spent["kinds"].items())
        lines.append(
            f"- {size}: packed is {ways['packed_over_m3']:.2f} times as fast as M3's own way; AdamW takes"
            f" {1000 * ways['optimizer_seconds']:.0f} ms beside it. The GPU is busy {spent['busy']:.2f} of a step:"
            f" {kinds}."
            f" More pictures ended by {found[f'{size} batches'].get('ended', 'nothing')}."
        )
    return "\n".join([*lines, *_cut_short(found)])


def _cut_short(found: Figures) -> list[str]:
    """What is missing is said: a stage that was ended leaves what it had."""
    return ["\nIt ended out of time: what stands here was measured before."] if found["ended"] == "out of time" else []


def _sizes(found: Figures) -> list[str]:
    return [key.removesuffix(" ways") for key in found if key.endswith(" ways")]


def _line(size: str, step: str, pictures: int, of: Figures) -> str:
    share = f"{of['share_of_peak']:.2f}" if "share_of_peak" in of else ""
    return f"| {size} | {step} | {pictures} | {of['pictures_per_s']:.1f} | {of['peak_mib'] / 1024:.1f} | {share} |"


def labels(found: Figures) -> str:
    lines = ["**Labelling at five scales** in bf16: pictures a second.\n"]
    for name, of in found.items():
        if isinstance(of, dict) and "over_the_finest" in of:
            rates = ", ".join(f"{way} {rate:.1f}" for way, rate in of["pictures_per_s"].items())
            lines.append(
                f"- {name} together: {rates}; five scales take {of['over_the_finest']:.2f} times the finest alone."
            )
    return "\n".join([*lines, *_cut_short(found)])


def decode(found: Figures) -> str:
    lines = [
        f"**A language model of {found['weights_bytes'] / 2**20:.0f} MiB in torch**, one conversation; memory would"
        f" allow {found['tokens_per_s_of_memory']:.0f} tokens a second.\n",
        "| way | tokens/s | ms a step | first token behind 36 / 144 / 576 visual ones, ms |",
        "|---|---|---|---|",
    ]
    for way in ("plain", "graphs", "compiled"):
        of = found.get(f"{way} decode", {})
        if "tokens_per_s" in of:
            first = [found.get(f"{way} prefill {visual}", {}).get("ms") for visual in (36, 144, 576)]
            told = " / ".join("not taken" if ms is None else f"{ms:.1f}" for ms in first)
            lines.append(f"| {way} | {of['tokens_per_s']:.0f} | {of['step_ms']:.2f} | {told} |")
    return "\n".join([*lines, *_cut_short(found)])


def real(found: Figures) -> str:
    """The ladder of a language model with real weights, and of each kind of question."""
    scales, parts, steps = list(found["ladder"]), found["parts"], found["steps"]
    weights = "real weights (SmolLM2-135M-Instruct)" if found["weights"] == "given" else "random weights"
    lines = [
        f"**A language model with {weights} learns the drawn world**: a tower of SigLIP's shape from nothing,"
        f" {steps[0]} steps of patches and {steps[1]} of answers in {parts['training']:.0f} s; then labelled in"
        f" {parts['labelling']:.0f} s. Right answers (%):\n",
        "| " + " | ".join(["tokens", *scales]) + " |",
        "|---" * (len(scales) + 1) + "|",
    ]
    for kind, ladder in {"all kinds": found["ladder"], **found["of_each_task"]}.items():
        lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(f"{100 * ladder[m]:.1f}" for m in scales) + " |")
    return "\n".join(lines)
