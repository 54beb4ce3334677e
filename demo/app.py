"""A page to search a catalogue with, and to see what entities do to the results.

python demo/app.py CHECKPOINT --catalogue FILE      (make demo: on the quick start's model)

Without a checkpoint: the quick start's, trained first if it is not there. The index of a catalogue
lies under work_dirs/demo or where --index says; each start brings it up to date. --index without
--catalogue is opened as it is.
"""

import argparse
import hashlib
import io
import logging
import subprocess
import sys
import threading
import webbrowser
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from eiclip_mm.apis import EICLIPInferencer, Encoder, read_photo
from eiclip_mm.apis.catalogue import open_photo
from eiclip_mm.apis.index import CatalogueIndex
from eiclip_mm.apis.search import CatalogueSearch

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.responses import FileResponse
    from fastapi.staticfiles import StaticFiles

    from eiclip_mm.apis.connections import connection
    from eiclip_mm.apis.service import Limits, create_app
except ImportError as error:
    raise SystemExit(f"{error}; the demo needs pip install 'eiclip_mm[serve]'.") from error

PAGE = Path(__file__).with_name('page')
ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / 'work_dirs/eiclip_fashiongen_mini'
MINI = ROOT / 'data/mini_fashiongen/fashiongen_256_256_validation.h5'
SIDE = 768  # pixels of the longer side of a photo that is sent
SAMPLE = 2000  # products that say what a catalogue has; the page shows their ranges and examples
# Texts and photos come from shops: nothing but the page's own files runs or loads.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HOSTS = ['127.0.0.1', 'localhost']  # what a browser calls this machine
DOCS = ('/docs', '/redoc')  # FastAPI's own pages load scripts from elsewhere


def main(argv: list[str] | None = None) -> None:
    """Make what is missing, and serve."""
    args = parse_args(argv)
    checkpoint = Path(args.checkpoint or quickstart())
    catalogue = args.catalogue or (None if args.index else MINI)
    index = args.index or place(checkpoint, catalogue)
    if catalogue:
        photos = ['--images', args.images] if args.images else []
        command = ROOT / 'tools/search/build_index.py', checkpoint, catalogue, '--index', index
        tool(*command, *photos)
    try:
        encoder = EICLIPInferencer(checkpoint)
        with CatalogueIndex.open(index) as opened:
            serve(CatalogueSearch(encoder, opened), args)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error


def place(checkpoint: Path, catalogue: str | Path) -> Path:
    """Where the index of a catalogue and a model lies: of others of the same names, elsewhere."""
    named = f'{checkpoint.resolve()}\n{Path(catalogue).resolve()}'.encode()
    digest = hashlib.blake2b(named, digest_size=4).hexdigest()
    return Path('work_dirs/demo') / f'{Path(catalogue).stem}_{digest}'


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('checkpoint', nargs='?', help="the quick start's by default")
    parser.add_argument('--catalogue', help='a file, as of build_index.py')
    parser.add_argument('--images', help="folder of its photos; default: the catalogue's own")
    parser.add_argument('--index', help='folder or address of the index')
    parser.add_argument('--port', type=int, default=8000)
    parser.add_argument('--open', action='store_true', help='open it in a browser')
    args = parser.parse_args(argv)
    if args.checkpoint and not (args.catalogue or args.index):
        parser.error('say what to search: --catalogue FILE, or --index WHERE')
    if args.images and not args.catalogue:
        parser.error('--images are the photos of a --catalogue; give both')
    return args


def serve(search: CatalogueSearch, args: argparse.Namespace) -> None:
    """Answer on this machine alone, until Ctrl-C."""
    address = f'http://127.0.0.1:{args.port}/'
    print(f'{len(search.index):,} products at {address} (Ctrl-C ends it)', flush=True)
    if args.open:
        threading.Timer(1, webbrowser.open, [address]).start()
    app = demo_app(search, search.encoder)
    uvicorn.run(
        app,
        host='127.0.0.1',
        port=args.port,
        http=connection(Limits()),
        ws='none',
        log_level=logging.WARNING,
    )


def quickstart() -> Path:
    """The checkpoint of the quick start, trained if it is not there."""
    if not list(QUICKSTART.glob('best_*.pth')):
        tool(ROOT / 'tools/quickstart.py', cwd=ROOT)
    return max(QUICKSTART.glob('best_*.pth'), key=lambda path: path.stat().st_mtime)


def tool(*command, cwd: Path | None = None) -> None:
    """Run one of the project's tools."""
    print('$ python', *command, flush=True)
    if code := subprocess.run([sys.executable, *map(str, command)], cwd=cwd).returncode:
        raise SystemExit(code)


def demo_app(search: CatalogueSearch, encoder: Encoder) -> FastAPI:
    """The service with a page in front: ``GET /``, ``/static``, ``/catalogue``, ``/photos/ID``."""
    app = create_app(search, encoder)
    about = overview(search, encoder)

    @app.middleware('http')
    async def guard(request: Request, call_next) -> Response:
        response = await call_next(request)
        if request.url.path not in DOCS:
            response.headers['Content-Security-Policy'] = POLICY
        response.headers['X-Content-Type-Options'] = 'nosniff'
        response.headers['Referrer-Policy'] = 'no-referrer'
        return response

    # A page elsewhere whose name is made to lead to this machine would be of our origin.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)

    @app.get('/', include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / 'index.html')

    @app.get('/catalogue', include_in_schema=False)
    def fields() -> dict:
        return about

    @app.get('/photos/{id_:path}', include_in_schema=False)
    def photo(id_: str) -> Response:
        # Only what the index names is opened, and only what decodes as an image leaves.
        name = search.index.get([id_]).get(id_, {}).get('photo')
        if name is None:
            raise HTTPException(404, f'product {id_!r:.100} has no photo in the index.')
        headers = {'Cache-Control': 'max-age=600'}
        return Response(jpeg(name), media_type='image/jpeg', headers=headers)

    app.mount('/static', StaticFiles(directory=PAGE))
    return app


def jpeg(name: str) -> bytes:
    """A photo that the index names, for a browser."""
    try:
        image = Image.fromarray(read_photo(open_photo(name)))
    except (OSError, ValueError) as error:
        raise HTTPException(404, 'the photo of this product cannot be read.') from error
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=92)
    return file.getvalue()


def overview(search: CatalogueSearch, encoder: Encoder) -> dict:
    """What the page must know of a catalogue, as plain JSON, from a sample of its products.

    ``types``, the entity types of the model; ``fields``, those to filter by: types and attributes
    whose values repeat; ``numbers``, attributes with their least and greatest value; ``examples``.
    """
    batches = search.index.scan(batch_size=SAMPLE)
    payloads = next((payloads for _, _, payloads in batches), [])
    values, numbers = defaultdict(list), defaultdict(list)
    seen = {type_ for payload in payloads for type_ in payload['entities']}
    types = list(encoder.tokenizer.vocab.types)
    types += sorted(seen.difference(types))
    for payload in payloads:
        for name, value in payload['attributes'].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers[name].append(value)
            elif value is not None:
                values[name] += map(str, value if isinstance(value, list) else [value])
    repeated = [name for name, found in values.items() if len(set(found)) <= len(found) / 2]
    return dict(
        products=len(search.index),
        model=encoder.name,
        types=types,
        fields=[*(type_ for type_ in types if type_ in seen), *repeated],
        numbers={name: [min(found), max(found)] for name, found in numbers.items()},
        examples=examples(payloads, types),
    )


def examples(payloads: Iterable[dict], types: Sequence[str], number: int = 5) -> list[str]:
    """Queries that find something: the first entities of products that differ in the very first."""
    found = {}
    for payload in payloads:
        known = payload['entities']
        names = [known[type_][0] for type_ in types if known.get(type_)]
        if names:
            found.setdefault(names[0], ' '.join(names[:3]))
    return list(found.values())[:number]


if __name__ == '__main__':
    main()
