"""``python -m pyconcord.cli``"""

from pyconcord.cli import main

main()
