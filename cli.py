"""`python cli.py …`, from a checkout."""

from mmsearch.cli import main

if __name__ == "__main__":
    main()
