"""`python -m medley_operator.cli`: the `medley` command."""

from medley_operator.cli import main

main()
