"""``python -m pyconcord``"""

from pyconcord.cli import main

if __name__ == "__main__":
    main()
