"""`python -m gguf_harness.cli`."""

import sys

from gguf_harness.cli import main

sys.exit(main())
