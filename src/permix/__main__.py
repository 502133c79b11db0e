"""`python -m permix`: the command line, for launchers that start modules (torchrun, accelerate launch)."""

import sys

from permix.cli import main

if __name__ == "__main__":
    sys.argv[0] = "permix"
    main()
