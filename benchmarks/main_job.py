"""The main job on both built-in tasks: `lighten compress` as a user runs it, and its result as a table.

Run: python benchmarks/main_job.py [digits] [fashion-mnist]      (fashion-mnist: `lighten train fashion-mnist` first)
     python benchmarks/main_job.py OUT …                        (folders that `lighten compress` wrote)
Prints one JSON line a task (result.json without its candidates) and, at the end, a Markdown table of the results and
one of each search's candidates.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TASKS = ("digits", "fashion-mnist")
ROW = "| {task} | {baseline} | {compressed} | {speed} | {size} | {drop} | {what} | {wall:.0f} s |"


def run(task: str, folder: Path) -> dict:
    command = ["lighten", "compress", task, "--max-drop", "0.01", "--minimize", "latency", "--out", str(folder / task)]
    done = subprocess.run([*command, "--format", "json"], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def read_or_run(asked: str, folder: Path) -> dict:
    kept = Path(asked) / "result.json"
    return json.loads(kept.read_text()) if kept.is_file() else run(asked, folder)


def candidates(result: dict) -> str:
    lines = [
        "| candidate | predicted ms | ms | kB | drop on selection data (95 %) | within the budget |",
        "|---" * 6 + "|",
    ]
    for one in result["candidates"]:
        if one["drop"] is None:
            lines.append(f"| {one['name']} | | | | {one['note']} | |")
            continue
        predicted, (low, high) = one["predicted_ms"], one["drop"]["ci95"]
        lines.append(
            f"| {one['name']} | {'' if predicted is None else f'{predicted:.3f}'} | {one['latency_ms']['median']:.3f} "
            f"| {one['size_bytes'] / 1000:.0f} | {one['drop']['value']:.4f} ({low:.4f} to {high:.4f}) "
            f"| {'yes' if one['within_budget'] else 'no'} |"
        )
    return "\n".join(lines)


def row(result: dict) -> str:
    chosen = next((trial["name"] for trial in result["candidates"] if trial["chosen"]), "the original")
    low, high = result["speedup_ci95"]
    drop = result["drop"]
    return ROW.format(
        task=result["task"],
        baseline=f"{result['baseline']['latency_ms']['median']:.4g} ms",
        compressed=f"{result['compressed']['latency_ms']['median']:.4g} ms",
        speed=f"{result['speedup']:.2f}× ({low:.2f} to {high:.2f})",
        size=f"{result['size_ratio']:.1f}×",
        drop=f"{drop['value']:.4f} ({drop['ci95'][0]:.4f} to {drop['ci95'][1]:.4f})",
        what=chosen + ("" if result["accepted"] else " (not accepted)"),
        wall=result["wall_s"],
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = [read_or_run(task, Path(folder)) for task in sys.argv[1:] or TASKS]
    for result in results:
        print(json.dumps({key: value for key, value in result.items() if key != "candidates"}))
    print("\n| task | original | result | faster | smaller | drop on holdout | chosen | time |\n|" + "---|" * 8)
    for result in results:
        print(row(result))
    for result in results:
        print(f"\n{result['task']}\n\n{candidates(result)}")


if __name__ == "__main__":
    main()
