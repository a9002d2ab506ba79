"""Puts real figures into the READMEs: from a finished demo run, its printed output, and benchmarks/results.

Usage: python scripts/readme_figures.py [RUN OUTPUT_FILE]
RUN is the demo's run folder, OUTPUT_FILE what `make demo` printed (standard output and error together). Without them
only the blocks that come from benchmarks/results are rewritten, and the picture of the training speed.
"""

import json
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
READMES = {"README.md": "en", "README.zh-CN.md": "zh"}
SHOWN = re.compile(
    r"^(?:(?:What the model|Training$|Base and tuned|Export$|check |train |evaluate |export |Done\.)|Training: done"
    r"|  (?:Examples in|Tokens in train|Share of tokens|Parameters that train|Speed  |Peak memory of the process"
    r"|Validation loss|Device|Computed in|Merged model|Mean KL|Same |Divergence)|Findings|  ·|             \S"
    r"|Answering the test set .*done|Full report)"
)
FIGURES = (("exact_match", "Exact match"), ("bleu", "BLEU"), ("rouge_l", "ROUGE-L"), ("perplexity", "Perplexity"))
TIMES = (
    ("time_to_first_token_ms", "Time to first token, ms"),
    ("ms_per_token", "Time per token, median, ms"),
    ("peak_memory_gb", "Peak memory of answering, GB"),
)
HEADS = {
    "en": ("| | base model | tuned model | gain, 95 % interval |", "test examples, on"),
    "zh": ("| | 基座模型 | 微调后 | 提升的 95 % 区间 |", "个测试样本，机器："),
}

TRUTH_HEADS = {
    "en": ("| fault | planted | found |", "Of {clean} clean rows {alarms} were flagged by some rule."),
    "zh": ("| 问题 | 埋入 | 发现 |", "在 {clean} 条干净的行中，有 {alarms} 条被某条规则误报。"),
}
SCALE_HEADS = {
    "en": (
        "| rows of train | seconds | µs a row | peak memory of all processes, GB | disk while it runs, GB |",
        "Rows of about 200 tokens, 1,000 rows of test, on: {device}.",
    ),
    "zh": (
        "| 训练集行数 | 秒 | 每行微秒 | 所有进程的峰值内存，GB | 运行时占用磁盘，GB |",
        "每行约 200 个 token，测试集 1,000 行，机器：{device}。",
    ),
}
TRAIN_HEADS = {
    "en": (
        "| tool | setting | tokens/s | quartiles | peak memory, GB |",
        "SmolLM2-135M, LoRA with r = 16, the same examples; real tokens, padding does not count; median of at least "
        "{steps} steps. {precision}, on: {device}.",
        "Not measured yet: benchmarks/results holds a smoke run, whose figures mean nothing.",
    ),
    "zh": (
        "| 工具 | 设置 | token/秒 | 四分位区间 | 峰值内存，GB |",
        "SmolLM2-135M，LoRA r = 16，各工具使用相同的样本；只计真实 token，不计填充；取不少于 {steps} 步的中位数。"
        "{precision}，机器：{device}。",
        "尚未正式测量：benchmarks/results 中目前只有冒烟测试，数字没有参考意义。",
    ),
}
TRAIN_TOOLS = {
    ("speed", "article"): "Trainer + PEFT",
    ("speed", "trl"): "TRL SFTTrainer",
    ("speed", "tunesmith"): "Tunesmith",
    ("last2", "peft"): "PEFT",
    ("last2", "tunesmith"): "Tunesmith",
}
"""Rows of the table; of each the fastest run."""

TRAIN_PICTURE = "benchmarks/results/train.svg"
PICTURE_LEFT, PICTURE_BAR, PICTURE_ROW = 250, 420, 44
"""Pixels: where bars begin, the longest of them, and the height of a row."""


def main(run: Path | None = None, output: Path | None = None) -> None:
    """Rewrites the marked blocks of both READMEs, those of the demo only if its run is given, and their picture."""
    (ROOT / TRAIN_PICTURE).write_text(train_picture(_result("train")), encoding="utf-8")
    for name, language in READMES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if run is not None and output is not None:
            evaluation, training = (_figures(run / "reports" / f"{stage}.json") for stage in ("evaluate", "train"))
            text = _replace(text, "output:demo", f"```text\n{_shortened(output.read_text(encoding='utf-8'))}\n```")
            text = _replace(text, "figures:demo", _table(evaluation, training, language))
        text = _replace(text, "figures:faults", _fault_table(_result("faults")))
        text = _replace(text, "figures:truth", _truth_table(_result("check_truth"), language))
        text = _replace(text, "figures:scale", _scale_table(_result("check_scale"), language))
        text = _replace(text, "figures:train", train_table(_result("train"), language))
        path.write_text(text, encoding="utf-8")


def _result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def _figures(path: Path) -> dict[str, dict[str, Any]]:
    return {figure["name"]: figure for figure in json.loads(path.read_text(encoding="utf-8"))["figures"]}


def _replace(text: str, mark: str, content: str) -> str:
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


def _shortened(output: str) -> str:
    """The lines that a reader wants, real ones, with ... where lines are left out."""
    lines: list[str] = []
    for line in output.splitlines():
        if SHOWN.match(line) and "Location" not in line:
            lines.append(line.rstrip())
        elif lines and lines[-1] != "...":
            lines.append("...")
    return "\n".join(lines).removesuffix("\n...")


def _table(evaluation: dict[str, dict[str, Any]], training: dict[str, dict[str, Any]], language: str) -> str:
    head, on = HEADS[language]
    rows = [head, "|---|---|---|---|"]
    for row in FIGURES:
        base, tuned, gain = (evaluation[f"{side}_{row[0]}"] for side in ("base", "tuned", "gain"))
        interval = re.sub(r"^.*interval ", "", gain["detail"])
        rows.append(f"| {row[1]} | {base['value']:.3f} | {tuned['value']:.3f} | {interval} |")
    for row in TIMES:
        base, tuned = (evaluation[f"{side}_{row[0]}"]["value"] for side in ("base", "tuned"))
        rows.append(f"| {row[1]} | {base:.1f} | {tuned:.1f} | |")
    examples, device = evaluation["test_examples"]["value"], training["device"]["value"]
    return "\n".join(rows) + f"\n\n{examples} {on} {device}."


def _fault_table(faults: dict[str, Any]) -> str:
    rows = ["| fault | tries | lost |", "|---|---|---|"]
    rows += [f"| {row['fault']} | {row['tries']} | {row['lost']} |" for row in faults["faults"]]
    return "\n".join([*rows, f"| **all** | **{faults['tries']}** | **{faults['lost']}** |"])


def _truth_table(truth: dict[str, Any], language: str) -> str:
    """Planted and found by kind, over all made sets; clean rows flagged by any rule of the kind."""
    kinds: dict[str, list[int]] = {}
    for outcome in truth["made"].values():
        for kind in outcome["kinds"]:
            counts = kinds.setdefault(kind["kind"], [0, 0])
            counts[0] += kind["planted"]
            counts[1] += kind["found"]
    clean = sum(outcome["clean_rows"] for outcome in truth["made"].values())
    alarms = sum(sum(outcome["false_alarms"].values()) for outcome in truth["made"].values())
    head, last = TRUTH_HEADS[language]
    rows = [head, "|---|---|---|"]
    rows += [f"| {kind} | {planted:,} | {found:,} |" for kind, (planted, found) in kinds.items()]
    return "\n".join(rows) + "\n\n" + last.format(clean=f"{clean:,}", alarms=f"{alarms:,}")


def _scale_table(scale: dict[str, Any], language: str) -> str:
    head, last = SCALE_HEADS[language]
    rows = [head, "|---|---|---|---|---|"]
    for size in scale["sizes"]:
        memory, disk = size["peak_memory_bytes"] / 1e9, size["peak_disk_bytes"] / 1e9
        microseconds = size["microseconds_per_row"]
        rows.append(f"| {size['rows']:,} | {size['seconds']:.0f} | {microseconds:.0f} | {memory:.2f} | {disk:.2f} |")
    return "\n".join(rows) + "\n\n" + last.format(device=scale["machine"]["device"])


def train_table(train: dict[str, Any], language: str) -> str:
    """Each tool at its fastest setting, by what benchmarks/results/train.json holds; no figure of a smoke run."""
    head, last, smoke = TRAIN_HEADS[language]
    if train["quick"]:
        return smoke
    rows, steps = [head, "|---|---|---|---|---|"], []
    for name, setting, best in _fastest_runs(train):
        low, high = best["quartiles"]
        rate, memory = best["median_tokens_per_second"], best["peak_bytes"] / 1e9
        rows.append(f"| {name} | {setting} | {rate:.0f} | {low:.0f}–{high:.0f} | {memory:.1f} |")
        steps.append(best["steady_steps"])
    said = last.format(steps=min(steps, default=0), precision=train["precision"], device=train["machine"]["device"])
    return "\n".join([f"![{head.split('|')[3].strip()}]({TRAIN_PICTURE})", "", *rows, "", said])


def train_picture(train: dict[str, Any]) -> str:
    """The speeds of `train_table` as bars, in SVG whose colours are read on light and on dark pages."""
    runs = _fastest_runs(train)
    scale = PICTURE_BAR / max((best["median_tokens_per_second"] for _, _, best in runs), default=1.0)
    parts, left = [], PICTURE_LEFT - 8
    for row, (name, setting, best) in enumerate(runs):
        rate, middle = best["median_tokens_per_second"], PICTURE_ROW * (row + 0.5)
        colour = "#1f8a70" if name == "Tunesmith" else "#8a8f98"
        parts += [
            f'<text x="{left}" y="{middle - 2:g}" text-anchor="end">{escape(name)}</text>',
            f'<text x="{left}" y="{middle + 12:g}" text-anchor="end" font-size="11">{escape(setting)}</text>',
            f'<rect x="{PICTURE_LEFT}" y="{middle - 11:g}" width="{scale * rate:.1f}" height="22" fill="{colour}"/>',
            f'<text x="{PICTURE_LEFT + scale * rate + 8:.1f}" y="{middle + 5:g}">{rate:.0f} tokens/s</text>',
        ]
    width, height = PICTURE_LEFT + PICTURE_BAR + 110, PICTURE_ROW * len(runs)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="14" fill="#7a808a" role="img">\n'
        f"<title>Training speed in {escape(train['precision'])}, on: {escape(train['machine']['device'])}</title>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _fastest_runs(train: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Name, setting and figures of the fastest run of each of `TRAIN_TOOLS`."""
    found = []
    for (part, tool), name in TRAIN_TOOLS.items():
        runs = [one for one in train["results"] if (one["part"], one["tool"]) == (part, tool) and "failed" not in one]
        if runs:
            best = max(runs, key=lambda one: one["median_tokens_per_second"])
            setting = best["name"] if part == "speed" else f"last:2, {best['name'].rpartition(', ')[2]}"
            found.append((name, setting, best))
    return found


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
