"""The WebSocket shell around a hub: server, clients, tokens. `HubConnection` is what they all speak."""

from fedlab.net.connecting import connect, connect_sync
from fedlab.net.connection import HubConnection
from fedlab.net.local import LocalConnection
from fedlab.net.opening import open_hub
from fedlab.net.server import HubServer, serve
from fedlab.net.settings import SETTINGS, Settings
from fedlab.net.sync import SyncConnection
from fedlab.net.tokens import Identity, Role, load_key, make_token, read_token

__all__ = [
    "SETTINGS",
    "HubConnection",
    "HubServer",
    "Identity",
    "LocalConnection",
    "Role",
    "Settings",
    "SyncConnection",
    "connect",
    "connect_sync",
    "load_key",
    "make_token",
    "open_hub",
    "read_token",
    "serve",
]
