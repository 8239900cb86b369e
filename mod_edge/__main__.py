"""`python -m mod_edge`: the same commands as `mod-edge`."""

from mod_edge.cli import app

if __name__ == "__main__":
    app(prog_name="mod-edge")
