"""`python -m hansa`: the command line."""

from hansa.cli import main

if __name__ == "__main__":
    main()
