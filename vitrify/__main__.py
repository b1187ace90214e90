"""The command: `vitrify`, and `python -m vitrify`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded ends it without a word."""
    try:
        from .cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
