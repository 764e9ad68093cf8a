"""The image, really built and really run, without Docker and without a registry: `make image-test`.

Not part of `make test`: it needs root, buildah and debootstrap, some minutes and some gigabytes.
"""
