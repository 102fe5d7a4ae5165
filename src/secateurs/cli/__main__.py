"""``python -m secateurs.cli``."""

from secateurs.cli.commands import main

main()
