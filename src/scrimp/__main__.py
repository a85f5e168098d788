"""``python -m scrimp``, which is also what ``torchrun -m scrimp`` starts."""

from scrimp.cli import main

raise SystemExit(main())
