"""Run the command line: `python -m laion_face_builder` is `laion-face`."""

import sys

from laion_face_builder.cli import main

sys.exit(main())
