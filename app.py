"""A page that asks a model about a text: `python app.py --model outputs/conditional_tiny`; as it is, also a Space."""

import sys

from arbprob_hf.demo.main import main

if __name__ == "__main__":
    sys.exit(main())
