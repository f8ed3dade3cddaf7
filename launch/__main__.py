"""`python -m launch`, the same as `dist-train`."""

from .cli import main

if __name__ == "__main__":
    main()
