import sys

from .cost import main

sys.exit(main())
