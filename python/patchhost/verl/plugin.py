"""For `VERL_USE_EXTERNAL_MODULES=patchhost.verl.plugin`, and for the entry point group `verl.plugins`.

verl imports what these name in each of its processes. A failure of `VERL_USE_EXTERNAL_MODULES` ends the import of
verl. A failure of an entry point is a line at DEBUG, and the run goes on without it (verl/__init__.py,
`except Exception`). With `PATCHHOST_REQUIRE=1` a failure here is therefore a `SystemExit`: it is no `Exception`, so
verl does not catch it; the process ends with the text on stderr and status 1, and Ray reports a dead worker.
"""

from __future__ import annotations

import os

from ..errors import Error
from .requirement import require


def _required() -> bool:
    return os.environ.get("PATCHHOST_REQUIRE", "").strip().lower() not in ("", "0", "false", "no")


try:
    VERSIONS = require()
except (Error, ImportError) as error:
    if _required():
        raise SystemExit(f"patchhost is required here (PATCHHOST_REQUIRE) and cannot run.\n{error}") from error
    raise
