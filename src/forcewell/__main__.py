"""``python -m forcewell`` is the command ``forcewell``, where scripts are not on the path."""

from forcewell.cli import main

if __name__ == "__main__":
    main()
