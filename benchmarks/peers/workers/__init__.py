"""One process per contender: loads its model and times steps on request.

Each runs in its contender's own environment, so a worker imports nothing but that environment's
packages, the standard library and `line_protocol`. Their names begin with `run_`: a module named as
the package that it imports would hide that package.
"""
