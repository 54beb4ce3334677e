"""Mutation score: the share of small faults, put into a module one at a time, that tests notice.

python tools/dev/mutation.py eiclip_mm.models.losses --tests tests/test_losses.py [--sample 60]

A fault, or mutant, changes one operator, comparison, number, truth value, condition, loop or
decorator, as cosmic-ray does (``pip install cosmic-ray``). Strings stay, docstrings so too; mutants
of annotations, and those that repeat another, are left out.

Each lives in a forked child that imports the changed source; no file changes, so a test that starts
a new interpreter does not see it. Name the quickest tests first. Hypothesis takes the same examples
for every mutant, by its profile ``ci``.
"""

import argparse
import ast
import difflib
import gc
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from importlib.machinery import SourceFileLoader as Loader
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What the rooms and their tests import from outside, so that a child need not.
OUTSIDE = ('pytest', 'hypothesis', 'eiclip_mm', 'mmengine.runner', 'mmpretrain.models', 'open_clip')
BINARY = 'Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Mul Mod_Mul Pow_Mul BitAnd_BitOr BitOr_BitAnd'
COMPARISON = """Lt_LtE LtE_Lt Gt_GtE GtE_Gt Lt_GtE LtE_Gt Gt_LtE GtE_Lt Eq_NotEq NotEq_Eq
Is_IsNot IsNot_Is"""
OTHER = """NumberReplacer ReplaceTrueWithFalse ReplaceFalseWithTrue AddNot ReplaceAndWithOr
ReplaceOrWithAnd ReplaceUnaryOperator_Delete_Invert ReplaceUnaryOperator_Delete_Not
ReplaceUnaryOperator_Delete_USub ReplaceBreakWithContinue ReplaceContinueWithBreak
ZeroIterationForLoop RemoveDecorator"""


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('modules', nargs='+', help='dotted names, e.g. eiclip_mm.models.losses')
    parser.add_argument('--tests', nargs='+', required=True, help='test files, as pytest takes')
    parser.add_argument('--sample', type=int, help='try so many mutants of all modules together')
    parser.add_argument('--seed', type=int, default=0, help='of the sample')
    parser.add_argument('--out', type=os.path.abspath, help='JSON file, rewritten as it goes')
    return parser.parse_args()


def main() -> None:
    """Try each mutant; print those that no test kills at once, and the score of each module."""
    args = parse_args()
    found = [mutant for name in args.modules for mutant in mutants(name)]
    if args.sample is not None:
        found = random.Random(args.seed).sample(found, min(args.sample, len(found)))
    os.chdir(ROOT)
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.path.insert(0, str(ROOT))
    for name in OUTSIDE:
        importlib.import_module(name)
    gc.freeze()  # no child looks through what all share
    start = time.monotonic()
    if attempt('', '', args.tests, None) != 'survived':
        raise SystemExit('the tests fail without a mutant')
    limit = 20 + 4 * (time.monotonic() - start)
    for number, mutant in enumerate(found, 1):
        mutant['state'] = attempt(mutant['module'], mutant.pop('source'), args.tests, limit)
        if mutant['state'] != 'killed':
            print(f'{number} of {len(found)} {mutant["state"]}\n{mutant["diff"]}', flush=True)
        if args.out:
            Path(args.out).write_text(json.dumps(found[:number], indent=1))
    for name in args.modules:
        noticed = [mutant['state'] != 'survived' for mutant in found if mutant['module'] == name]
        print(f'{name}: {sum(noticed)} of {len(noticed)} mutants noticed')
    print(f'{sum(m["state"] != "survived" for m in found) / len(found):.0%}')


def mutants(module: str) -> list[dict]:
    """Module, diff and source of all mutants of a module, each other code than the rest."""
    try:
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator
    except ImportError as error:
        raise SystemExit('cosmic-ray makes the mutants: pip install cosmic-ray') from error
    source = (ROOT / f'{module.replace(".", "/")}.py').read_text(encoding='utf-8')
    old, seen, found = source.splitlines(), {meaning(source)}, []
    names = [f'ReplaceBinaryOperator_{way}' for way in BINARY.split()]
    names += [f'ReplaceComparisonOperator_{way}' for way in COMPARISON.split()]
    for name in names + OTHER.split():
        operator, occurrence = get_operator(f'core/{name}')(), 0
        while changed := mutate_code(source, operator, occurrence):
            occurrence += 1
            if meaning(changed) not in seen:
                seen.add(meaning(changed))
                new = changed.splitlines()
                diff = difflib.unified_diff(old, new, module, name, n=0, lineterm='')
                found.append(dict(module=module, diff='\n'.join(diff), source=changed))
    return found


def meaning(source: str) -> str:
    """What runs of a source: its syntax tree without annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        vars(node).update(dict.fromkeys({'annotation', 'returns'} & set(node._fields)))
    return ast.dump(tree)


def attempt(module: str, source: str, tests: list[str], limit: float | None) -> str:
    """'survived' if the tests pass in a child, else 'killed', or 'timeout' after limit seconds."""
    fork = multiprocessing.get_context('fork')
    child = fork.Process(target=run_tests, args=(module, source, tests))
    child.start()
    child.join(limit)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)  # and what it has started
        child.join()
        return 'timeout'
    return 'killed' if child.exitcode else 'survived'


def run_tests(module: str, source: str, tests: list[str]) -> None:
    """Exit as pytest does, in a process group of its own, where the module has this source."""
    import pytest

    os.setpgrp()
    if module:  # else there is no mutant, and failures are to be seen
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    of_file = Loader.get_code
    Loader.get_code = lambda loader, name: (
        compile(source, loader.path, 'exec') if name == module else of_file(loader, name)
    )
    quiet = 'ignore::pytest.PytestAssertRewriteWarning'  # plugins were imported in the parent
    options = ['-qx', '-W', quiet, '-p', 'no:cacheprovider', '--hypothesis-profile=ci']
    sys.exit(pytest.main([*options, *tests]))


if __name__ == '__main__':
    main()
