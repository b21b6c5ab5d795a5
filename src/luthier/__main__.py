"""`python -m luthier` is `luthier`."""

from luthier.cli import main

main()
