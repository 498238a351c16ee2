"""`python -m lighten`: the command line, where the folder of scripts is not on the path."""

from lighten.cli import main

main()
