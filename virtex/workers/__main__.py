"""python -m virtex.workers: the process that run() and `virtex serve` put in the place of their own."""

from .program import main

if __name__ == "__main__":
    main()
