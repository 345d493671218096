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
