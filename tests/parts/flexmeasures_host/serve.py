"""Serve FlexMeasures from a run folder: `python serve.py <run folder> <port>`.

Runs in FlexMeasures' environment. FlexMeasures is imported once; the workers and the web server are forked
from that process. Lines on stdin start and stop the web server, or stop everything; when stdin ends, the
parent has ended, and the run folder is removed. A line on stdout confirms every command.
"""

import gc
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import services

QUEUES = ("scheduling", "forecasting", "ingestion")


def main(run: Path, port: int) -> None:
    """Start everything, execute the commands on stdin, and stop everything."""
    os.chdir(run)
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    postgres = services.Postgres(run)
    redis_port, redis_password = services.free_port(), secrets.token_hex(16)
    database = postgres.start()
    redis = services.start_redis(run, redis_port, redis_password)
    children: dict[str, int] = {}
    keep = True
    try:
        postgres.wait()
        app = services.create_app(run, postgres.uri, redis_port, redis_password)
        warm_up()
        leave_no_connection(app)
        for queue in QUEUES:
            children[queue] = fork(partial(work, app, queue))
        children["web"] = start_web(app, port)
        say.write("serving\n")
        for line in sys.stdin:
            match line.split():
                case ["stop", "web"] if "web" in children:
                    end(children.pop("web"))
                case ["start", "web"] if "web" not in children:
                    children["web"] = start_web(app, port)
                case ["stop"]:
                    break
            say.write("done\n")
        else:
            keep = False
    finally:
        for child in children.values():
            end(child)
        services.stop(redis, signal.SIGTERM)
        services.stop(database, signal.SIGINT)
        if not keep:
            shutil.rmtree(run, ignore_errors=True)


def warm_up() -> None:
    """Import what every job would import otherwise."""
    import highspy  # noqa: F401
    from sqlalchemy.orm import configure_mappers

    configure_mappers()


def leave_no_connection(app: Any) -> None:
    """Close the app's connections: forked processes cannot share them."""
    with app.app_context():
        app.db.session.remove()
        app.db.engine.dispose()
    app.redis_connection.connection_pool.disconnect()


def start_web(app: Any, port: int) -> int:
    """Start the web server, and wait until it answers."""
    child = fork(lambda: serve(app, port))
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return child
        except OSError:
            if os.waitpid(child, os.WNOHANG)[0] or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def serve(app: Any, port: int) -> None:
    """Answer HTTP requests."""
    from werkzeug.serving import make_server

    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


def work(app: Any, queue: str) -> None:
    """Do the jobs of a queue."""
    import rq
    from flexmeasures.cli.jobs import get_exception_handler

    base: Any = rq.SimpleWorker if sys.platform == "darwin" else rq.Worker

    class Worker(base):
        """A worker whose jobs end with it."""

        def main_work_horse(self, *args: Any) -> None:
            services.die_with_parent()
            gc.disable()  # the process ends before collecting its little garbage is worth the time
            super().main_work_horse(*args)

    with app.app_context():
        Worker(
            [app.queues[queue]],
            connection=app.redis_connection,
            name=f"{queue}-{os.getpid()}",
            exception_handlers=[get_exception_handler(queue)],
        ).work()


def fork(role: Callable[[], None]) -> int:
    """Run a role in a process of its own, and return its id."""
    child = os.fork()
    if child:
        return child
    services.die_with_parent()
    os.close(0)
    try:
        role()
    finally:
        os._exit(1)


def end(child: int) -> None:
    """End a forked process."""
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
