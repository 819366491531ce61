"""`python -m ebseg_deploy` is `ebseg`."""

from .cli import main

main()
