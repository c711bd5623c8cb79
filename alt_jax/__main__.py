"""`python -m alt_jax`: the same as `alt-jax`."""

from alt_jax.cli import main

if __name__ == "__main__":
    main()
