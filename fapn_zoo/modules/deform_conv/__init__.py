"""Deformable convolution (DCN v1 and v2): `conv` is its door, `cpu` and `cuda` hold the kernels."""
