"""Write the small synthetic catalogue: Fashion-Gen's format, a general split, planted truth.

Run  python tools/dataset_converters/make_mini_fashiongen.py --out data/mini_fashiongen
"""

import argparse
from pathlib import Path

from eiclip_mm.datasets.synthetic import is_written, write_mini_fashiongen


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('data/mini_fashiongen'), help='folder')
    parser.add_argument('--num-train', type=int, default=1200, help='products in train')
    parser.add_argument('--num-validation', type=int, default=300, help='products in validation')
    parser.add_argument('--num-general', type=int, default=4000, help='general-domain pictures')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--force', action='store_true', help='write again over an earlier result')
    args = parser.parse_args(argv)

    arguments = dict(
        num_train=args.num_train,
        num_validation=args.num_validation,
        num_general=args.num_general,
        seed=args.seed,
    )
    kept = is_written(args.out, **arguments) and not args.force
    try:
        truth = write_mini_fashiongen(args.out, **arguments, force=args.force)
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    except OSError as error:
        raise SystemExit(f'{args.out} cannot be written: {error}') from error
    for name, count in truth['files'].items():
        size = (args.out / name).stat().st_size / 1e6
        print(
            f'{args.out / name}: {count["products"]} products, {count["rows"]} rows, {size:.0f} MB'
        )
    print(f'{args.out / "truth.json"}: what was planted')
    if kept:
        print('Nothing written: the files were there with the same arguments (--force rewrites).')


if __name__ == '__main__':
    main()
