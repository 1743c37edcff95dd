"""`python -m mmneuron_nb` is the command `mmneuron`."""
from .cli import main

raise SystemExit(main())
