"""What this machine can do: devices, precision, threads, compilers, processes, provenance, whole files."""
