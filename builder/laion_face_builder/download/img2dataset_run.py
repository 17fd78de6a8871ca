"""The process that img2dataset runs in: `python -m laion_face_builder.download.img2dataset_run SETTINGS_AS_JSON`.

Its workers are spawned, and import this module again as `__mp_main__`: every one of them ends with its parent.
"""

from __future__ import annotations

import json
import sys

from laion_face_builder.download.orphans import end_with_parent


def main() -> None:
    """Runs img2dataset with the settings given as the first argument."""
    from img2dataset import download

    download(**json.loads(sys.argv[1]))


if __name__ in ("__main__", "__mp_main__"):
    end_with_parent(pipe=__name__ == "__main__")
if __name__ == "__main__":
    main()
