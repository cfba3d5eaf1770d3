"""`python -m fedlab` is `fedlab`."""

from fedlab.cli import main

main()
