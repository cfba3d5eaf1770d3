"""Streamlit, with what a first visitor would wait for under way: the imports, and what a hub reads before it counts.

`fedlab dashboard` runs it as `python serve.py app.py OPTION…`, at the other end of a pipe: they end together.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from pathlib import Path

from streamlit.web.cli import main

# Run by its path, as Streamlit runs a script: the packages are found from the folder above.
sys.path[0] = str(Path(__file__).resolve().parents[1])


NEEDED = ("dashboard.figures", "PIL.Image", "streamlit.material_icon_names")
"""Modules that the first page would import; a picture and its formats for the icon in the tab of the browser."""


def warm() -> None:
    """Import what all pages need, and have the hubs that were named count once."""
    from dashboard import sources
    from fedlab.errors import FedlabError
    from fedlab.net import open_hub
    from fedlab.plots import blank

    for module in NEEDED:
        importlib.import_module(module)
    blank("", "", "")  # imports Plotly
    start = sources.start()
    for target in start.targets if start.own_rights else ():
        with contextlib.suppress(FedlabError):
            if "://" in target:
                with open_hub(target, None, retry_for=sources.PATIENCE) as connection:
                    connection.growth(connection.info().tenant_id)


if __name__ == "__main__":
    from fedlab.hub_process import end_with_stdin

    end_with_stdin()
    threading.Thread(target=warm, name="warm", daemon=True).start()
    main(["run", *sys.argv[1:]])
