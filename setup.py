"""Metadata of the package; pyproject.toml holds tool settings only."""

import os
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
REQUIRED = ('runtime', 'mminstall')  # of requirements/; each other file but the lock is an extra
MIM = ('tools', 'configs', 'model-index.yml')  # what OpenMMLab looks for in <package>/.mim
CLONE_ONLY = ('quickstart.py', 'dev')  # tools that start others by their paths, or need the tests


def requirements(name: str) -> list[str]:
    """Requirements in requirements/<name>.txt, those of the files it names by ``-r`` included."""
    found = []
    for line in (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines():
        line = line.partition('#')[0].strip()
        if line.startswith('-r '):
            found += requirements(line.removeprefix('-r ').strip().removesuffix('.txt'))
        elif line:
            found.append(line)
    return found


class BuildWithMim(build_py):
    """Builds the package and its ``.mim`` folder: links in an editable install, else copies."""

    def run(self):
        super().run()
        if self.editable_mode:
            self.make_mim(ROOT / 'eiclip_mm' / '.mim', link=True)
        else:
            self.make_mim(Path(self.build_lib) / 'eiclip_mm' / '.mim', link=False)

    @staticmethod
    def make_mim(folder: Path, link: bool):
        shutil.rmtree(folder, ignore_errors=True)  # unlinks links, leaves what they point at
        folder.mkdir(parents=True)
        for name in MIM:
            source, target = ROOT / name, folder / name
            if link:
                try:
                    target.symlink_to(os.path.relpath(source, folder))
                    continue
                except OSError:  # Windows without the right to make links
                    pass
            if source.is_dir():
                ignored = shutil.ignore_patterns('__pycache__', *CLONE_ONLY)
                shutil.copytree(source, target, ignore=ignored)
            else:
                shutil.copy2(source, target)


METADATA = dict(
    name='eiclip_mm',
    version=runpy.run_path(str(ROOT / 'eiclip_mm' / 'version.py'))['__version__'],
    description='EI-CLIP, entity-aware image-text retrieval for fashion, for mmpretrain',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The eiclip_mm contributors',
    license_expression='Apache-2.0',
    license_files=['LICENSE'],
    keywords='image-text retrieval, fashion, CLIP, causal inference, OpenMMLab',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    python_requires='>=3.11',
    install_requires=[line for name in REQUIRED for line in requirements(name)],
    extras_require={
        path.stem: requirements(path.stem)
        for path in sorted((ROOT / 'requirements').glob('*.txt'))
        if path.stem not in (*REQUIRED, 'lock')
    },
    packages=find_packages(include=['eiclip_mm', 'eiclip_mm.*']),
    package_data={'': ['*.html', 'py.typed'], 'eiclip_mm': ['schemas/*.json']},
    zip_safe=False,
    cmdclass={'build_py': BuildWithMim},
)

if __name__ == '__main__':
    setup(**METADATA)
