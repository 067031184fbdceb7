"""``python -m lastmile_trl``: the ``lastmile`` command, and what accelerate launch starts for one stage."""

from .cli import main

if __name__ == "__main__":
    main()
