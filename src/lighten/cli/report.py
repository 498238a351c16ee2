"""`lighten report DIR`: draw the page again from the result.json and plan.yaml of a finished run."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lighten.cli.console import Format, FormatOption, print_json, stderr
from lighten.errors import ArtifactError


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Where `lighten compress` wrote its results."),
    ],
    output: FormatOption = Format.TEXT,
) -> None:
    """Rebuild DIR/report.html from DIR/result.json and DIR/plan.yaml; nothing is measured again."""
    from lighten.plan import Plan
    from lighten.report import write_report

    page = folder / "report.html"
    write_report(read_result(folder / "result.json"), Plan.load(folder / "plan.yaml"), page)
    if output is Format.JSON:
        print_json({"report": str(page)})
        return
    stderr.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result.json.

    Raises:
        ArtifactError: not there, not JSON, or not a mapping.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"Cannot read '{path}': {error.strerror}. Give the folder that `lighten compress --out` wrote."
        ) from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise ArtifactError(f"'{path}' is not JSON: {error}. Run `lighten compress` again to write it anew.") from error
    if not isinstance(result, dict):
        raise ArtifactError(f"'{path}' holds a {type(result).__name__}, not a mapping. Is it a lighten result?")
    return result
