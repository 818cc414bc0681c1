"""``python -m pyconcord.demo [DSN]``"""

import argparse

from pyconcord.demo import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pyconcord.demo", description=main.__doc__)
    parser.add_argument("dsn", nargs="?")
    parser.add_argument("--seconds", type=float, help="about how long all six ways take together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="a quarter of the time, for CI")
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    raise SystemExit(main(**vars(parser.parse_args())))
