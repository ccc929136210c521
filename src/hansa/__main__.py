"""`python -m hansa`: the command line."""

from hansa.cli import main

main()
