"""The command line: parse, call a recipe, show. No torch is imported before a command needs it."""

from luthier.cli import surroundings


def main() -> None:
    """Run the command line in a process of its own."""
    surroundings.settle()
    from luthier.cli.app import main

    try:
        main()
    finally:
        surroundings.leave()
