"""`python -m arbprob_hf ...` is `arbprob ...`."""

from .cli import main

if __name__ == "__main__":
    main()
