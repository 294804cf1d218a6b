"""Train a GPT-2 under any attention mask: python train_hf.py --config configs/nano.yaml [--field value]"""

import sys
from collections.abc import Sequence

from arbprob_hf.errors import exit_on_user_error, keep_imports_quiet
from arbprob_hf.training.arguments import parse


def main(argv: Sequence[str]) -> None:
    """Read the options, train, and say where everything is."""
    with exit_on_user_error("train_hf.py", traceback="--traceback" in argv):
        arguments = parse(argv, announce=lambda line: print(line, flush=True))
    with exit_on_user_error("train_hf.py", traceback=arguments.run.traceback):
        # imported once the options are understood: it takes seconds
        keep_imports_quiet()
        from arbprob_hf.training.run import print_main, train

        print_main(arguments, f"\n{train(*arguments)}")


if __name__ == "__main__":
    main(sys.argv[1:])
