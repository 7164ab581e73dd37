import sys

from trdlib.ops.cli import main

sys.exit(main())
