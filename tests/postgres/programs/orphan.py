"""Leaves a running server to nobody: nothing watches it, and its owner dies by kill -9. Prints its folder and DSN."""

from __future__ import annotations

import os
import signal

from tests import cluster

cluster._watch = lambda home: None
server = cluster.PgCluster.start()
print(server.folder, server.dsn(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
