"""Serve a model over HTTP: python tools/deployment/serve.py CHECKPOINT --index WHERE

One process holds the model; requests that come at the same time are encoded together. Without
--index there is /embed alone. SIGTERM lets it finish what it has begun. See docs/serving.md.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields

import torch
from PIL import Image

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.apis.encoder import Encoder
from eiclip_mm.apis.index import CatalogueIndex
from eiclip_mm.apis.inferencer import EICLIPInferencer
from eiclip_mm.apis.search import CatalogueSearch

try:
    import uvicorn
    from fastapi import FastAPI

    from eiclip_mm.apis.connections import connection
    from eiclip_mm.apis.service import Limits, create_app
except ImportError as error:
    raise SystemExit(
        f"{error.name} is not installed; this tool needs pip install 'eiclip_mm[serve]'."
    ) from error

FAREWELL_S = 0.5  # a request that is on its way arrives in this time


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add, own = parser.add_argument, Limits()
    add('checkpoint', nargs='?', help='of a training run')
    add('--onnx', metavar='FOLDER', help='instead of it: what export_onnx.py wrote')
    add('--index', metavar='WHERE', help='folder, or http(s)://host:port/collection of Qdrant')
    add('--device', help="'cuda' where there is one, by default; not with --onnx")
    add('--host', default='127.0.0.1', help='0.0.0.0 for all networks of the machine')
    add('--port', type=int, default=8000, help='0: one that is free')
    add('--threads', type=int, help='cores that one batch may use; all by default')
    add('--max-batch', type=int, default=own.max_batch, help='items encoded together')
    add('--max-wait-ms', type=float, default=own.max_wait_ms, help='a batch waits to fill up')
    add('--max-queue', type=int, default=own.max_queue, help='items accepted; beyond it, 503')
    add('--max-body-mb', type=float, default=own.max_body_mb, help='of a request; beyond it, 413')
    add('--timeout-s', type=float, default=own.timeout_s, help='to an answer; beyond it, 504')
    add('--max-items', type=int, default=own.max_items, help='of a request; beyond it, 422')
    add('--max-connections', type=int, default=own.max_connections, help='beyond it, they are cut')
    add('--max-rate', type=float, default=own.max_rate, help='a second and address; beyond it, 429')
    args = parser.parse_args(argv)
    if (args.checkpoint is None) == (args.onnx is None):
        parser.error('give CHECKPOINT or --onnx FOLDER')
    if not 0 <= args.port < 2**16:
        parser.error(f'--port must be 0 to 65535, got {args.port}')
    if args.threads is not None and args.threads < 1:
        parser.error(f'--threads must be at least 1, got {args.threads}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Load, serve, and end in order."""
    args = parse_args(argv)
    for signal_ in (signal.SIGTERM, signal.SIGINT):  # uvicorn's own while it serves
        signal.signal(signal_, lambda *_: sys.exit(0))
    logging.basicConfig(format='%(asctime)s %(message)s', stream=sys.stderr)
    logging.getLogger('eiclip_mm.service').setLevel(logging.INFO)
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # refused in any case
    with contextlib.ExitStack() as stack:
        try:
            limits = limits_of(args)
            encoder = load(args)
            search = None
            if args.index is not None:
                index = stack.enter_context(CatalogueIndex.open(args.index))
                search = CatalogueSearch(encoder, index)
        except (ValueError, OSError, ImportError) as error:
            raise SystemExit(str(error)) from error
        serve(create_app(search, encoder, limits), args)


def limits_of(args: argparse.Namespace) -> Limits:
    """Those of the command line."""
    names = {field.name for field in fields(Limits)} & vars(args).keys()
    return Limits(**{name: getattr(args, name) for name in names})


def load(args: argparse.Namespace) -> Encoder:
    """The model."""
    if args.onnx is not None:
        from eiclip_mm.apis.onnx import OnnxEncoder

        return OnnxEncoder(args.onnx, args.max_batch, args.threads)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    return EICLIPInferencer(args.checkpoint, args.device, batch_size=args.max_batch)


def serve(app: FastAPI, args: argparse.Namespace) -> None:
    """Until SIGTERM or SIGINT; what was accepted is answered first."""
    try:
        listener = listen(args.host, args.port)
    except OSError as error:
        raise SystemExit(f'cannot listen on {args.host}, port {args.port}: {error}.') from error
    host = f'[{args.host}]' if ':' in args.host else args.host
    print(f'http://{host}:{listener.getsockname()[1]}/docs', flush=True)
    config = uvicorn.Config(
        app,
        http=connection(limits_of(args)),
        ws='none',
        proxy_headers=False,  # any client of this machine could say that it is another one
        log_level='warning',
        access_log=False,  # the service writes its own line
        timeout_graceful_shutdown=int(args.timeout_s) + 5,  # by then all have their answer or 504
    )
    Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket whose connections send at once."""
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=2048)
    # Connections inherit it. Otherwise the body of an answer, written after its headers, waits till
    # the client has acknowledged these: 40 ms on a connection that is kept.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class Server(uvicorn.Server):
    """One that does not hang up on a client that is about to send."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, say on the open ones that they end, then end."""
        for listening in self.servers:
            listening.close()
        self.config.app.state.closing = True
        await asyncio.sleep(FAREWELL_S)
        await super().shutdown(sockets)


if __name__ == '__main__':
    main()
