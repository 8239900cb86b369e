"""`python -m mod_edge`: the same commands as `mod-edge`."""

from mod_edge.commands.app import app

if __name__ == "__main__":
    app(prog_name="mod-edge")
