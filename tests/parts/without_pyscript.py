"""Import this first to import the scripts' modules in a program of its own, where pytest does the same.

Pyscript's decorator is what Python compiles by itself.
"""

import builtins
import sys
from pathlib import Path

MODULES = Path(__file__).parents[2] / "modules"

builtins.pyscript_compile = lambda function: function
if str(MODULES) not in sys.path:
    sys.path.insert(0, str(MODULES))
