"""``python -m probe`` is ``pgprobe``."""

from probe.commands import main

if __name__ == "__main__":
    main()
