import sys

from .goals import main

if __name__ == "__main__":  # once: worker processes import this module again
    sys.exit(main())
