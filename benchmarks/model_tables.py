"""The figures of `benchmarks.model_step` as Markdown."""

from __future__ import annotations

from typing import Any


def short(row: dict[str, float]) -> str:
    if not row:
        return "not run"
    return f"{row['seconds']:.2f} s, {row['peak_gib']:.2f} GiB"


def tables(figures: dict[str, Any]) -> str:
    """Markdown."""
    lines = []
    for section in ("whole", "parts", "step", "native", "compiled", "transport"):
        if section in figures:
            lines += section_table(section, figures[section], figures.get("agreement", {}))
    if "parts" in figures and "step" in figures:
        lines += comparison(figures["parts"], figures["step"])
    for name, row in figures.items():
        if name.startswith("scan ") and row:
            lines.append(
                f"{name}: tensors built in {row['build']:.2f} s, "
                f"one sample {1000 * row['sample']:.1f} ms"
            )
    return "\n".join(lines)


def section_table(
    section: str, rows: dict[str, dict[str, float]], agree: dict[str, dict[str, float]]
) -> list[str]:
    lines = [
        f"| {section} | forward s | backward s | both s | CPU s | peak GiB | of it for the step "
        "| TFLOP | of matrix rate | us per token | times plain | forecast, gradients |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if not row:
            lines.append(f"| {name} | not run | | | | | | | | | | |")
            continue
        share = row["flops"] / row["seconds"] / row["matrix_rate"]
        plain = rows.get(name.removesuffix(", aqnet") + ", plain")
        ratio = f"{row['cpu_seconds'] / plain['cpu_seconds']:.2f}" if plain else ""
        near = agree.get(name)
        both = f"{near['forecast']:.0e}, {near['gradient']:.0e}" if near else ""
        lines.append(
            f"| {name} | {row['forward']:.2f} | {row['backward']:.2f} | {row['seconds']:.2f} "
            f"| {row['cpu_seconds']:.2f} | {row['peak_gib']:.2f} | {row['step_gib']:.2f} "
            f"| {row['flops'] / 1e12:.2f} | {share:.0%} "
            f"| {1e6 * row['seconds'] / row['tokens']:.0f} | {ratio} | {both} |"
        )
    if section == "native":
        size = 8 * (340 * 432 // 4) ** 2 * 4 / 1e9  # heads, tokens by tokens, FP32
        lines.append(
            f"| plain, terrain block | not run: {size:.0f} GB a tensor | | | | | | | | | | |"
        )
    return [*lines, ""]


def comparison(pieces: dict[str, Any], step: dict[str, Any]) -> list[str]:
    """The step of the original configuration against the plain sum of parts."""
    needed = [pieces.get(f"{piece}, plain") for piece in ("embedding", "terrain block", "block")]
    if not all(needed):
        return ["plain, sum of parts: not run", ""]
    lines = []
    for kind, unit in (("seconds", "s"), ("cpu_seconds", "CPU s")):
        embedding, terrain, block = (row[kind] for row in needed if row)
        total = embedding + terrain + 5 * block
        lines += [
            f"plain, all tokens, sum of parts (head left out): {total:.1f} {unit} = "
            f"{embedding:.1f} embedding + {terrain:.1f} terrain block + 5 x {block:.1f} block",
            "",
            *(
                f"- {name}: {row[kind]:.1f} {unit}, {total / row[kind]:.1f} times faster"
                for name, row in step.items()
                if row
            ),
            "",
        ]
    return lines
