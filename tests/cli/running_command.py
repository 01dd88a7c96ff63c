"""How the tests start `theon`."""

import sys

COMMAND = [sys.executable, "-c", "from theon.cli import main; main()"]
