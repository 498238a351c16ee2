"""The main job on both built-in tasks: `lighten compress` as a user runs it, and its result as a table.

Run: python benchmarks/main_job.py [digits] [fashion-mnist]      (fashion-mnist: `lighten train fashion-mnist` first)
Prints one JSON line a task (result.json without its trials) and, at the end, a Markdown table.
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
        results = [run(task, Path(folder)) for task in sys.argv[1:] or TASKS]
    for result in results:
        print(json.dumps({key: value for key, value in result.items() if key != "candidates"}))
    print("\n| task | original | result | faster | smaller | drop on holdout | chosen | time |\n|" + "---|" * 8)
    for result in results:
        print(row(result))


if __name__ == "__main__":
    main()
