"""``python -m dagsched`` is the command line."""

from dagsched.cli import main

if __name__ == "__main__":
    main()
