"""The command line: one command for each stage; a command's options are the fields of the stage's configuration class.

    permix COMMAND [CONFIG.toml] [--section.field VALUE ...]

The file may also be the config.json of a run. A flag overrides the file, and the file overrides the default. Exit codes: 0 done,
1 failed, 2 bad input, 3 cells are pending (run the same command again), 130 interrupted by Ctrl-C, 143 by SIGTERM (run the same
command again). With --shard only the cells of that part count.

`process` runs a command and turns errors into messages, `commands` has one function for each command, and `flags` turns arguments
into a configuration.
"""

from permix.cli.commands import COMMANDS
from permix.cli.process import main, run_cli

__all__ = ["COMMANDS", "main", "run_cli"]
