"""`lighten`: one file a command. Exit 0 done, 1 refused with a reason, 2 bad usage, 130 interrupted.

A new command is its file, its import and its line below. Commands import torch inside their function, so that
`lighten --help` answers at once.
"""

import os
import sys
from collections.abc import Sequence

import typer

from lighten.cli.accelerate import accelerate
from lighten.cli.benchmark import benchmark
from lighten.cli.compress import compress
from lighten.cli.console import print_error
from lighten.cli.doctor import doctor
from lighten.cli.profile import profile
from lighten.cli.prune import prune
from lighten.cli.quantize import quantize
from lighten.cli.report import report
from lighten.cli.train import train
from lighten.errors import LightenError

app = typer.Typer(
    name="lighten",
    help="Make a trained PyTorch model smaller and faster, and prove what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # an unexpected error is a bug of ours: its plain traceback is the report
)


@app.callback()
def _root() -> None:
    # Without a callback typer drops the command's name while there is only one.
    pass


app.command()(accelerate)
app.command()(benchmark)
app.command()(compress)
app.command()(doctor)
app.command()(profile)
app.command()(prune)
app.command()(quantize)
app.command()(report)
app.command()(train)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; args default to the process's own. Always ends in SystemExit, or a bug's traceback."""
    # OpenMP threads that wait by spinning starve each other when the machine has anything else to do: beside one busy
    # process, 100 steps of fine-tuning the digits network took 15.7 s, and 3.2 s with threads that sleep. It has to
    # be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args)
    except LightenError as error:
        print_error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
