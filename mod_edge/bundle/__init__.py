"""A bundle on disk: manifests of its graphs and engines, written atomically."""
