"""`python -m arbprob_hf ...` is `arbprob ...`."""

from arbprob_hf.cli import main

if __name__ == "__main__":
    main()
