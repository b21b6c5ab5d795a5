"""The command line: parse, call a recipe, show. No torch is imported before a command needs it."""

from luthier.cli.app import main as main
