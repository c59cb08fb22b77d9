"""Stop with one sentence where this Python cannot carry the environment."""

import importlib.util
import sys

OLDEST = (3, 11)

if sys.version_info < OLDEST:
    have, need = (".".join(str(n) for n in v) for v in (sys.version_info[:2], OLDEST))
    sys.exit(f"optc needs Python {need} or newer, this is {have}; try: make PYTHON=python{need}")
if importlib.util.find_spec("ensurepip") is None:
    sys.exit("this Python has no ensurepip; on Debian or Ubuntu: apt install python3-venv")
