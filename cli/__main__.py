"""`python -m cohortium.cli`."""

from cohortium.cli.main import main

main()
