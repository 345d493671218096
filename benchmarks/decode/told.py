"""What precisions keep of real weights, and what verbs take of large checkpoints, as tables of the page of figures."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]


def real_weights(found: Figures) -> str:
    """A row for each precision and peer."""
    scored = found["tokens"]["scored"]
    lines = [
        f"**What few bits keep of {found['model']}**: {sum(scored.values())} choices of a token, in two texts; the"
        f" second ({scored['kept_back']}) was looked at for no choice of forms. Calibrated with"
        f" {found['tokens']['calibrated']} other tokens. KL to float32 in nats a token; MiB of decoder and head. Times"
        " are CPU time on one thread of a busy machine, in milliseconds.\n",
        "| decoder | KL | KL, 2nd text | first choice kept | nats lost | MiB | a token | prompts of 36 / 144 / 576 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in {**found["precisions"], **found["peers"]}.items():
        prompts = row.get("prefill_cpu_ms", {})
        times = [f"{row['decode_cpu_ms']:.1f}" if "decode_cpu_ms" in row else "",
                 " / ".join(f"{value:.0f}" for value in prompts.values())]  # fmt: skip
        facts = [f"{row['kl']:.4f}", f"{row['by_text']['kept_back']['kl']:.4f}", f"{row['top1']:.3f}",
                 f"{row['nats']:+.3f}", f"{row['mib']:.1f}", *times]  # fmt: skip
        lines.append(f"| {' | '.join([name, *facts])} |")
    return "\n".join(lines)


def real_beside(found: Figures) -> str:
    """A row for each peer: its quality first, then its speed at each number of threads."""
    model = found["model"]
    lines = [
        f"**Everybody's decoders of {model}, at the quality each has**: {found['choices']} choices of a token behind"
        f" prompts of {found['prompt']}, held against float32; MiB of decoder and head. Tokens a second are medians of"
        f" rounds in which everybody has one turn; the load of the machine while they were taken stands beside them.\n",
        "| decoder | KL | first choice kept | MiB | threads | decode | prompts of 36 / 144 / 576 | rounds, load |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["peers"].items():
        facts = [name, f"{row['kl']:.4f}", f"{row['top1']:.3f}", f"{row['mib']:.1f}"]
        for threads, times in row["times"].items():
            prompts = " / ".join(f"{value:.0f}" for value in times["prefill_tokens_s"].values())
            load = f"{times['rounds']}, {times['load']['median']:.1f}"
            decode = f"{times['decode_tokens_s']:.1f}"
            lines.append(f"| {' | '.join([*facts, threads, decode, prompts, load])} |")
            facts = [""] * len(facts)
        if not row["times"]:
            lines.append(f"| {' | '.join([*facts, '', '', '', ''])} |")
    missing = [f"{name} ({reason})" for name, reason in found["absent"].items()]
    return "\n".join([*lines, *([f"\nLeft out: {'; '.join(missing)}."] if missing else [])])


def size(found: Figures) -> str:
    """A row for each verb of each size."""
    lines = [
        "**Large checkpoints in float16**: the most memory that a verb held which the system cannot take back, the most"
        " with the files that it mapped, and seconds on a busy machine.\n",
        "| weights | verb | private, MiB | with mapped files, MiB | bytes a weight, private | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for facts in found["sizes"].values():
        for verb, row in facts["verbs"].items():
            billions = f"{facts['weights'] / 1e9:.2f} B"
            if "failed" in row:
                lines.append(f"| {billions} | {verb} | {row['failed']} | | | |")
                continue
            private = row["private_mib"]
            each = private * 2**20 / facts["weights"]
            lines.append(
                f"| {billions} | {verb} | {private:.0f} | {row['resident_mib']:.0f} | {each:.2f} |"
                f" {row['seconds']:.0f} |"
            )
    return "\n".join(lines)
